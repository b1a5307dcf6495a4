"""End what an earlier start of the same command has left running on this host. Standard library only: it also runs over ssh.

    python -m training.supervision.leftovers WORDS [SCRIPT]

WORDS is the command's part from `run_pretrain.sh` (or SCRIPT) on, as JSON. A process belongs to it if its command line holds these words
and no others that make it another run (`run.name=...`), and it runs in this folder: ranks, DeepSpeed's per-host launcher, and mpiexec's or
Slurm's copies of the script. Never a supervisor: where the hostfile has another name for its host than the host itself, this comes over ssh
to the very host that the supervisor runs on.
"""

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from training.launch.arguments import OVERRIDE
from training.launch.process_tree import all_processes, ancestors, command_of, parent_of

SCRIPT = "run_pretrain.sh"
SUPERVISOR = "training.supervise"
# A rank that is asked to end saves if it can; one that waits for dead peers cannot.
LEAVE_SECONDS = 10.0


def find(words: Sequence[str], folder: Path, script: str = SCRIPT) -> list[int]:
    """Process ids of the start of these words, or without words of any; the processes that this one descends from left out."""
    own = ancestors()
    return [process for process in all_processes() if process not in own and _belongs(process, words, folder, script)]


def _belongs(process: int, words: Sequence[str], folder: Path, script: str) -> bool:
    command = command_of(process)
    start = next((index for index, word in enumerate(command) if Path(word).name == script), None)
    if start is None or SUPERVISOR in command[:start] or Path(f"/proc/{process}/cwd").resolve() != folder:
        return False
    # A remote shell may have taken quotes, white space and backslashes away.
    theirs, ours = ([re.sub(r"[\s\"'\\]", "", word) for word in some] for some in (command[start + 1 :], words))
    return not ours or (set(theirs).issuperset(ours) and _run_of(theirs) == _run_of(ours))


def _run_of(words: Sequence[str]) -> list[str]:
    """The words that decide which run it is: the configuration, and what is changed of its section `run`."""
    config = next((word for word in words if not word.startswith("-") and not OVERRIDE.match(word)), "")
    return [config, *sorted(word for word in words if word.startswith(("run.", "run=")))]


def end(words: Sequence[str], folder: Path, script: str = SCRIPT) -> int:
    """End them: asked first, killed after `LEAVE_SECONDS`. Returns how many there were."""
    found = find(words, folder, script)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
                os.kill(process, signal.SIGCONT)  # A stopped process would not hear of it.
        deadline = time.monotonic() + LEAVE_SECONDS
        while time.monotonic() < deadline and any(parent_of(process) is not None for process in found):
            time.sleep(0.1)
    return len(found)


if __name__ == "__main__":
    print(end(json.loads(sys.argv[1]), Path.cwd(), *sys.argv[2:]))
