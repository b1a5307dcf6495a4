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


def lost_ranks() -> dict[int, str]:
    """The ranks of hosts that are given up, and their hosts as the hostfile names them."""
    arguments = (argument for process in ancestors() for argument in command_of(process))
    word = next((argument for argument in arguments if argument.startswith(WORLD_INFO)), None)
    pdsh = word and next((process for process in all_processes() if _is_pdsh(command_of(process), word)), None)
    if not word or not pdsh:
        return {}
    hosts: dict[str, list[int]] = json.loads(base64.urlsafe_b64decode(word.removeprefix(WORLD_INFO)))
    if len(hosts) > PDSH_FAN_OUT:
        return {}
    called = {argument for child in children_of(pdsh) for argument in command_of(child)}
    ranks = ((host, slot) for host, slots in hosts.items() for slot in slots)
    return {rank: host for rank, (host, _) in enumerate(ranks) if host not in called}


def _is_pdsh(command: list[str], word: str) -> bool:
    return Path(command[0]).name == "pdsh" and word in command
