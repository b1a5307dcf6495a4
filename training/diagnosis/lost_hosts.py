"""Hosts whose ranks will never come, because there is no ssh to them that DeepSpeed's launcher could have started them with.

DeepSpeed's command runs one pdsh, which keeps one ssh per host for as long as that host's ranks live; a host that cannot be reached,
refuses the login or has no checkout is an ssh that is gone, while the pdsh waits for the others. So rank 0 need not guess how long an
import from a cold disk may take. It can see that where the command was typed on its own host, as in a job script. Where it was typed
elsewhere, rank 0 takes hosts for lost that accept no connection for ssh while another does. Under other launchers it knows nothing.
Linux only.
"""

import base64
import contextlib
import json
import socket
import subprocess
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from training.launch.process_tree import all_processes, ancestors, children_of, command_of

WORLD_INFO = "--world_info="
# DeepSpeed has pdsh connect to so many hosts at once: more are not started before others have ended.
PDSH_FAN_OUT = 1024
SSH_PORT = 22
# A packet may be lost.
TRIES, ANSWER_SECONDS = 2, 3.0
CONNECTIONS = 64


def hosts_of_ranks() -> list[str]:
    """The host of each rank as the hostfile names it; nothing under other launchers than DeepSpeed's."""
    word = _world_info()
    return _hosts_in(word) if word else []


def lost_ranks(absent: Collection[int]) -> dict[int, str] | None:
    """Of these ranks those whose hosts the launcher, on this host, has no ssh to any more, and the hosts as the hostfile names them.

    None if there is no such launcher to be seen.
    """
    word = _world_info()
    pdsh = word and next((process for process in all_processes() if _is_pdsh(command_of(process), word)), None)
    if not word or not pdsh:
        return None
    hosts = _hosts_in(word)
    if len(set(hosts)) > PDSH_FAN_OUT:
        return {}
    called = {argument for child in children_of(pdsh) for argument in command_of(child)}
    return _with_hosts(absent, hosts, {host for host in hosts if _address(host) not in called})


def ranks_without_ssh(absent: Collection[int]) -> dict[int, str]:
    """These ranks and their hosts, if none of their hosts accepts a connection for ssh, and nothing otherwise. Ask rank 0.

    It is an inference: another host from which ranks have come accepts one, so the network does not keep hosts from each other's ssh.
    While one of the missing does as well, it may only be late, and so may the others.
    """
    hosts = hosts_of_ranks()
    asked = {hosts[rank] for rank in absent if rank < len(hosts)}
    others = [host for host in hosts if host not in (hosts[0], *asked)]
    if not asked or not others or not _accepts_ssh(others[0]):
        return {}
    with ThreadPoolExecutor(max_workers=CONNECTIONS) as threads:
        return {} if any(threads.map(_accepts_ssh, asked)) else _with_hosts(absent, hosts, asked)


def _with_hosts(ranks: Collection[int], hosts: Sequence[str], wanted: Collection[str]) -> dict[int, str]:
    return {rank: hosts[rank] for rank in ranks if rank < len(hosts) and hosts[rank] in wanted}


def _accepts_ssh(host: str) -> bool:
    """Whether it does where ssh would connect to: ssh's configuration may have another address and port for this name.

    True as well for a host that ssh reaches through another one, and where ssh does not say: nothing can be told then.
    """
    said = ""
    try:
        said = subprocess.run(
            ["ssh", "-G", host], capture_output=True, text=True, errors="replace", timeout=ANSWER_SECONDS, check=False
        ).stdout
    except subprocess.TimeoutExpired:
        return True
    except OSError:  # No ssh here: then the name is the host's.
        pass
    ssh = dict(line.split(" ", 1) for line in said.splitlines() if " " in line)
    if {ssh.get("proxyjump", "none"), ssh.get("proxycommand", "none")} != {"none"}:
        return True
    address = ssh.get("hostname", _address(host)), int(ssh.get("port", SSH_PORT))
    for _ in range(TRIES):
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=ANSWER_SECONDS):
            return True
    return False


def _address(host: str) -> str:
    """Without a user ("USER@HOST"), which is an option of ssh."""
    return host.rpartition("@")[2]


def _world_info() -> str | None:
    """DeepSpeed's word for all hosts and slots, from the command of the launcher above this process."""
    arguments = (argument for process in ancestors() for argument in command_of(process))
    return next((argument for argument in arguments if argument.startswith(WORLD_INFO)), None)


def _hosts_in(word: str) -> list[str]:
    hosts: dict[str, list[int]] = json.loads(base64.urlsafe_b64decode(word.removeprefix(WORLD_INFO)))
    return [host for host, slots in hosts.items() for _ in slots]


def _is_pdsh(command: list[str], word: str) -> bool:
    return Path(command[0]).name == "pdsh" and word in command
