"""The hosts of a supervised run: read from a hostfile with spares, asked whether they answer, and chosen for the next start."""

import re
import shlex
import socket
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

# DeepSpeed reads the first kind of line and takes the second for a comment. A name reaches ssh as a word of its own, so it is no option.
NAME_AND_SLOTS = r"(?P<name>[A-Za-z0-9_:][\w.:@-]*)\s+slots=(?P<slots>[1-9]\d*)"
HOST = re.compile(rf"^{NAME_AND_SLOTS}\s*(#.*)?$", re.ASCII)
SPARE = re.compile(rf"^#\s*spare:\s*{NAME_AND_SLOTS}\s*$", re.ASCII)
ANSWER_SECONDS = 10
# At most so many ssh connections at a time: sshd and name servers refuse floods.
CONNECTIONS = 64
LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True)
class Host:
    """One line of a hostfile."""

    name: str
    slots: int

    @property
    def is_here(self) -> bool:
        """Whether this process runs on it, so that nothing needs ssh."""
        return self.name in LOCAL_NAMES or self.name == socket.gethostname()

    def is_called(self, name: str) -> bool:
        """Whether pdsh means it: it leaves out a user, and the domain except of an address."""
        bare = self.name.rpartition("@")[2]
        return name == bare or bare.startswith(f"{name}.")


@dataclass(frozen=True)
class Pool:
    """What a run may be started on, in order of preference."""

    wanted: tuple[Host, ...]
    spares: tuple[Host, ...] = ()

    @property
    def all(self) -> tuple[Host, ...]:
        """Spares behind the others."""
        return (*self.wanted, *self.spares)

    @property
    def slots(self) -> int:
        """Ranks of a start with nothing missing."""
        return sum(host.slots for host in self.wanted)


def read_pool(path: Path) -> Pool:
    """Read a hostfile. Spares are comments to DeepSpeed: `# spare: node33 slots=6`.

    Raises:
        ValueError: If the file is not there, a line is neither a host, a spare nor a comment, or a host stands twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}. Give the hostfile's path as it is seen from here.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8 ({error.reason}). Save the hostfile as UTF-8.") from None
    wanted, spares = [], []
    for number, line in enumerate(map(str.strip, lines), 1):
        if spare := SPARE.match(line):
            spares.append(Host(spare["name"], int(spare["slots"])))
        elif host := HOST.match(line):
            wanted.append(Host(host["name"], int(host["slots"])))
        elif line.startswith("#") and "spare" in line.partition(":")[0]:
            raise ValueError(f'{path}:{number}: "{line}" is no spare host. Write "# spare: HOST slots=N", N being 1 or more.')
        elif line and not line.startswith("#"):
            shown = line if line.isprintable() else ascii(line)[1:-1]
            raise ValueError(f'{path}:{number}: "{shown}" is not a host. Write "HOST slots=N", N being 1 or more.')
    names = [host.name for host in (*wanted, *spares)]
    if not wanted or len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{path}: {', '.join(twice)} twice. One line for each host." if twice else f"{path}: no hosts.")
    return Pool(tuple(wanted), tuple(spares))


def write_hostfile(path: Path, hosts: Sequence[Host]) -> None:
    """Write what DeepSpeed reads."""
    path.write_text("".join(f"{host.name} slots={host.slots}\n" for host in hosts), encoding="utf-8")


def options_for(hosts: Sequence[Host], hostfile: Path | str) -> list[str]:
    """DeepSpeed's options to start on these hosts. By itself it starts a single host's ranks where it runs, whatever the hostfile says."""
    elsewhere = len(hosts) == 1 and not hosts[0].is_here
    return ["--hostfile", str(hostfile), *["--force_multi"] * elsewhere]


def on(host: Host, command: Sequence[str], ssh_port: str | None = None) -> list[str]:
    """The command as it is run on a host, in this folder."""
    if host.is_here:
        return list(command)
    remote = f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(command)}"
    port = ["-p", ssh_port] if ssh_port else []
    return ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={ANSWER_SECONDS}", *port, host.name, remote]


def on_each(
    hosts: Sequence[Host], command: Sequence[str], ssh_port: str | None = None, limit_seconds: float = 2 * ANSWER_SECONDS
) -> dict[str, str | None]:
    """Run a command on all hosts at once. By host: the last line it printed to standard output, or None if it failed or did not answer."""

    def run(host: Host) -> str | None:
        words = on(host, command, ssh_port)
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=limit_seconds, check=False, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return (done.stdout.splitlines() or [""])[-1] if done.returncode == 0 else None

    with ThreadPoolExecutor(max_workers=CONNECTIONS) as threads:
        return dict(zip([host.name for host in hosts], threads.map(run, hosts), strict=True))


def answering(hosts: Sequence[Host], ssh_port: str | None = None) -> dict[str, bool]:
    """Which hosts answer and see this folder."""
    return {name: said is not None for name, said in on_each(hosts, ["true"], ssh_port).items()}


def choose(pool: Pool, usable: Callable[[Host], bool], fits: Callable[[int], bool]) -> list[Host]:
    """The hosts of the next start, in the pool's order: those wanted that are usable, and spares for the others.

    No more than the batch fits on, which can be divided over some numbers of ranks only; none if no number of them fits.
    """
    ready = [host for host in pool.all if usable(host)]
    # A spare stands in for a host of the same size; more than was wanted is not used.
    chosen = ready[: len(pool.wanted)]
    while chosen and not fits(sum(host.slots for host in chosen)):
        chosen.pop()
    return chosen
