"""Hosts whose ranks will never come, because the ssh that DeepSpeed's launcher started them with has ended.

DeepSpeed's command runs one pdsh, which keeps one ssh per host for as long as that host's ranks live; a host that cannot be reached,
refuses the login or has no checkout is an ssh that is gone, while the pdsh waits for the others. So rank 0 need not guess how long an
import from a cold disk may take. It can see that where the command was typed on its own host, as in a job script; elsewhere, and under
other launchers, it knows nothing. Linux only.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

from training.launch.parent import all_processes, ancestors, children_of, command_of

WORLD_INFO = "--world_info="
# DeepSpeed has pdsh connect to so many hosts at once: more are not started before others have ended.
PDSH_FAN_OUT = 1024


def hosts_of_ranks() -> list[str]:
    """The host of each rank as the hostfile names it; nothing under other launchers than DeepSpeed's."""
    word = _world_info()
    return _hosts_in(word) if word else []


def lost_ranks() -> dict[int, str]:
    """The ranks of hosts that are given up, and their hosts as the hostfile names them."""
    word = _world_info()
    pdsh = word and next((process for process in all_processes() if _is_pdsh(command_of(process), word)), None)
    if not word or not pdsh:
        return {}
    hosts = _hosts_in(word)
    if len(set(hosts)) > PDSH_FAN_OUT:
        return {}
    # A user ("USER@HOST") is an option of ssh.
    called = {argument for child in children_of(pdsh) for argument in command_of(child)}
    return {rank: host for rank, host in enumerate(hosts) if host.rpartition("@")[2] not in called}


def _world_info() -> str | None:
    """DeepSpeed's word for all hosts and slots, from the command of the launcher above this process."""
    arguments = (argument for process in ancestors() for argument in command_of(process))
    return next((argument for argument in arguments if argument.startswith(WORLD_INFO)), None)


def _hosts_in(word: str) -> list[str]:
    hosts: dict[str, list[int]] = json.loads(base64.urlsafe_b64decode(word.removeprefix(WORLD_INFO)))
    return [host for host, slots in hosts.items() for _ in slots]


def _is_pdsh(command: list[str], word: str) -> bool:
    return Path(command[0]).name == "pdsh" and word in command
