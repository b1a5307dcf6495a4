"""Two hosts on one machine: each has its own network, processes, mounts, name and ssh server; the file system is shared.

DeepSpeed's launcher ends remote processes with `pkill -f` and starts them through ssh, so separate networks alone would not do.
All is undone by ending one process per host: the last process of a namespace takes the namespace with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import KEPT, LIMIT_SECONDS, descendants, start, wait_until

NAMES = ("alpha", "beta")
NETWORK = "10.213.47"
NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid")
# Process 1 of a host. Mounts are private to it; nothing outside sees the other /etc/hosts or ssh settings.
FIRST_PROCESS = """
set -e
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
mount --bind "$2/ssh_config" /etc/ssh/ssh_config
mount -t tmpfs tmpfs /run
mkdir /run/sshd
ip link set lo up
/usr/sbin/sshd -D -f "$2/sshd_config" -E "$2/sshd_$1.log" &
# With this process the host would take its end of the cable, and with that the other end, away.
while :; do sleep 1000 || :; done
"""


def missing() -> str | None:
    """Why hosts cannot be made here, or None."""
    if os.geteuid() != 0:
        return "needs root: network namespaces and an ssh server"
    tools = [tool for tool in ("pdsh", "ssh", "ip", "pgrep", "unshare", "nsenter", "setpriv") if shutil.which(tool) is None]
    if not Path("/usr/sbin/sshd").exists():
        tools.append("sshd")
    if tools:
        return f"needs {', '.join(tools)}: apt-get install pdsh openssh-server iproute2 procps util-linux"
    cable = ["ip", "link", "add", "cable0", "type", "veth", "peer", "name", "cable1"]
    probes = {
        "namespaces are": ["unshare", *NAMESPACES, "--fork", "--mount-proc", "true"],
        "virtual cables between networks are": ["unshare", "--net", *cable],
    }
    for what, command in probes.items():
        probe = subprocess.run(command, capture_output=True, text=True, check=False)
        if probe.returncode:
            return f"{what} not allowed here: {probe.stderr.strip()}"
    return None


needs_hosts = pytest.mark.skipif(bool(reason := missing()), reason=str(reason))


@dataclass
class Host:
    """A name, an address, and the processes `unshare` (outside) and 1 (inside, seen from outside)."""

    name: str
    address: str
    outer: subprocess.Popen[bytes]
    first: int

    def command(self, *words: str, folder: Path | str = "/") -> list[str]:
        """The words of a command that runs `words` on this host, in `folder`."""
        return ["nsenter", f"--target={self.first}", *NAMESPACES, f"--wd={folder}", *words]

    def read(self, path: str) -> str:
        """A file as the host sees it."""
        return subprocess.run(self.command("cat", path), capture_output=True, text=True, check=True).stdout

    def pids(self, pattern: str) -> list[int]:
        """Process ids, as seen on the host, of those whose command line matches."""
        found = subprocess.run(self.command("pgrep", "-f", pattern), capture_output=True, text=True, check=False)
        return [int(line) for line in found.stdout.split()]

    def kill_everything(self) -> None:
        """End all its processes but the first: nothing answers there any more, and the cable stays."""
        subprocess.run(self.command("kill", "-9", "-1"), check=False)

    def kill(self, number: int, pid: int) -> None:
        """Send a signal to a process of the host."""
        subprocess.run(self.command("kill", f"-{number}", str(pid)), check=True)

    def start_ssh(self, folder: Path) -> None:
        """As when a host that was dead is started again. What runs there then lives as long as the host."""
        subprocess.run(self.command("/usr/sbin/sshd", "-f", f"{folder}/sshd_config", "-E", f"{folder}/sshd_{self.name}.log"), check=True)
        KEPT.update(descendants(self.outer.pid))

    def set_link(self, state: str) -> None:
        """Cut this host's end of the cable ("down"), or mend it ("up")."""
        subprocess.run(self.command("ip", "link", "set", "cable0", state), check=True)

    def set_everything_but_ssh(self, state: str) -> None:
        """Lose what this host sends to others unless it is ssh ("down"), as when only the ranks' network breaks; or no more ("up")."""
        for priority, rule in enumerate((["sport", "22"], ["dport", "22"]), start=10):
            self._rule(state, priority, ["ipproto", "tcp", *rule, "lookup", "main"])
        self._rule(state, 12, ["blackhole"])

    def _rule(self, state: str, priority: int, rule: Sequence[str]) -> None:
        action = "add" if state == "down" else "del"
        subprocess.run(self.command("ip", "rule", action, "priority", str(priority), *rule), check=True)


class Hosts:
    """Both hosts, joined by one virtual cable."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_settings(folder)
        self.all: list[Host] = []
        try:
            for index, name in enumerate(NAMES):
                self.all.append(start_host(name, f"{NETWORK}.{index + 1}", folder))
            connect(self.all)
            for host in self.all:
                wait_for_ssh(self.all[0], host)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End both hosts and whatever still runs on them."""
        for host in self.all:
            host.outer.send_signal(signal.SIGKILL)  # --kill-child: process 1 goes with it, and with process 1 all others
            host.outer.wait()

    def hostfile(self, slots: Sequence[int]) -> Path:
        """A hostfile with these slots per host."""
        path = self.folder / f"hostfile_{'_'.join(map(str, slots))}"
        lines = [f"{name} slots={count}\n" for name, count in zip(NAMES, slots, strict=True)]
        path.write_text("".join(lines), encoding="utf-8")
        return path


class Started:
    """A command that is running on the first host, as a person starts it there."""

    def __init__(self, hosts: Hosts, words: Sequence[str], folder: Path, **environment: str) -> None:
        self.hosts = hosts
        self.process = start(
            hosts.all[0].command(*words, folder=folder),
            # Of the launcher's variables only a few travel: what must reach the ranks stands in DeepSpeed's environment file.
            env={**os.environ, "HOME": str(hosts.folder), "DS_ENV_FILE": str(hosts.folder / "environment"), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self) -> tuple[int, str]:
        """Exit code and everything that was printed."""
        output, _ = self.process.communicate(timeout=LIMIT_SECONDS)
        return self.process.returncode, output

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Until it is so; a command that has ended before is a failure."""

        def met() -> bool:
            if condition():
                return True
            assert self.process.poll() is None, self.finish()[1]
            return False

        wait_until(met, what)


def deepspeed(hostfile: Path | str, *arguments: str) -> list[str]:
    """The words that start a run on the hosts of a hostfile."""
    return [str(Path(sys.executable).with_name("deepspeed")), "--hostfile", str(hostfile), "run_pretrain.sh", *arguments]


def write_settings(folder: Path) -> None:
    """Keys, and what ssh and sshd read on the hosts; the machine's own stay as they are."""
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    entries = ["127.0.0.1 localhost", *(f"{NETWORK}.{index + 1} {name}" for index, name in enumerate(NAMES))]
    (folder / "hosts").write_text("\n".join(entries) + "\n", encoding="utf-8")
    client = f"IdentityFile {folder}/user_key\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n"
    (folder / "ssh_config").write_text(client, encoding="utf-8")
    server = f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized_keys\nPermitRootLogin yes\nPasswordAuthentication no\n"
    # A home of its own keeps the machine's .bashrc out (ssh reads it before every command).
    server += f"StrictModes no\nUsePAM no\nPidFile none\nSetEnv HOME={folder}\n"
    (folder / "sshd_config").write_text(server, encoding="utf-8")


def start_host(name: str, address: str, folder: Path) -> Host:
    """Make the namespaces and start the first process in them."""
    # A killed test run must not leave hosts behind: with pytest goes unshare, and with unshare everything on the host.
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc"]
    outer = subprocess.Popen([*command, "bash", "-c", FIRST_PROCESS, "bash", name, str(folder)], stdin=subprocess.DEVNULL)
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    wait_until(lambda: bool(children.read_text(encoding="utf-8").split()), "the first process of a host")
    return Host(name, address, outer, int(children.read_text(encoding="utf-8").split()[0]))


def connect(hosts: Sequence[Host]) -> None:
    """One cable, one end in each host's network; none in the machine's own."""
    ends = [f"{host.first}" for host in hosts]
    subprocess.run(
        ["ip", "link", "add", "cable0", "netns", ends[0], "type", "veth", "peer", "name", "cable0", "netns", ends[1]], check=True
    )
    for host in hosts:
        subprocess.run(host.command("ip", "addr", "add", f"{host.address}/24", "dev", "cable0"), check=True)
        subprocess.run(host.command("ip", "link", "set", "cable0", "up"), check=True)


def wait_for_ssh(origin: Host, target: Host) -> None:
    """Until a command can be run there."""
    command = origin.command("ssh", "-o", "ConnectTimeout=2", target.name, "true")
    wait_until(
        lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0, f"ssh from {origin.name} to {target.name}"
    )
