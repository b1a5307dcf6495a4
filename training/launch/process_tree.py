"""The tree of a run's processes, read from /proc, of which nothing outlives what started it. Linux only.

Standard library only, and alone: this file also runs as a script.

    python training/launch/process_tree.py PARENT COMMAND...

becomes COMMAND, which the kernel kills as soon as process PARENT ends, however it ends. Processes that we start are started so.
Ranks are started by launchers of other people, so they look after themselves: `watch_launcher`.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG = 1
# The process id of the `./run_pretrain.sh` that a rank belongs to; unset where DeepSpeed, mpiexec or srun were started by hand.
STARTER = "PRETRAIN_STARTER"
WATCH_SECONDS = 0.5
# A rank that a person starts from a shell, by hand and with nohup, has a parent that may well end before it.
SHELLS = {"ash", "bash", "dash", "fish", "ksh", "sh", "tcsh", "zsh"}


def bound(command: Sequence[str]) -> list[str]:
    """The command, made to end with this process. Start it from the main thread: the kernel watches the thread, not the process."""
    return [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(os.getpid()), *command]


def stat_of(process: int) -> list[str]:
    """What the kernel says of a process behind its name: state, parent, group, session and so on, as in proc(5).

    Raises:
        OSError: If there is no such process.
    """
    # The name, in brackets, may hold spaces and brackets itself.
    return Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()


def parent_of(process: int) -> int | None:
    """The parent's process id; None if there is no such process, or it has ended and was not waited for yet."""
    try:
        state, parent = stat_of(process)[:2]
    except OSError:
        return None
    return None if state in "ZX" else int(parent)


def command_of(process: int) -> list[str]:
    """The words of a running process's command; one empty word if there is no such process."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return [""]


def children_of(process: int) -> list[int]:
    """The process ids of the children that are running."""
    return sorted(child for child in all_processes() if parent_of(child) == process)


def ancestors() -> list[int]:
    """The process ids of this process and of those that it descends from, upwards."""
    found, process = [], os.getpid()
    while process:
        found.append(process)
        process = parent_of(process) or 0
    return found


def all_processes() -> list[int]:
    """The process ids of this machine."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def watch_launcher(environment: Mapping[str, str]) -> None:
    """End this rank when the processes that started it have ended; from a thread.

    Without its parent (DeepSpeed's launcher, mpiexec's proxy, Slurm's step) it leaves at once: nobody waits for it any more, nobody
    would end it with its peers, and the next start needs its devices and the run's folder. Below `./run_pretrain.sh` the kernel sees to
    it. Without the parent's parent, if that is `./run_pretrain.sh` or the command `deepspeed`, it sends itself SIGTERM: there is still a
    launcher to wait for ranks that save.
    """
    launcher = os.getppid()
    starter = parent_of(launcher)
    started_by = environment.get(STARTER)
    if started_by:
        # The thread below has to wait while an import loads gigabytes of libraries; the kernel has not.
        _end_with_parent()
        if os.getppid() != launcher or started_by not in (str(starter), str(launcher)):
            _exit_as_orphan(environment)  # They ended while this process was starting.
    if Path(command_of(launcher)[0].lstrip("-")).name in SHELLS and not started_by:
        return
    words = command_of(starter) if starter is not None else []
    # The command `deepspeed` is the half of the launcher that a person starts.
    is_runner = any(Path(word).name == "deepspeed" for word in words[:3]) or "deepspeed.launcher.runner" in words[:5]
    watched = starter if str(starter) == started_by or is_runner else None

    def watch() -> None:
        told = watched is None
        while os.getppid() == launcher:
            if not told and parent_of(launcher) not in (watched, None):
                told = True
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(WATCH_SECONDS)
        _exit_as_orphan(environment)

    threading.Thread(target=watch, name="launcher", daemon=True).start()


def _end_with_parent() -> int:
    """Ask the kernel to kill this process when the thread that started it ends. Returns 0, or the number of an error."""
    return ctypes.get_errno() if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) else 0


def _exit_as_orphan(environment: Mapping[str, str]) -> NoReturn:
    with contextlib.suppress(OSError):  # The terminal may have ended as well.
        print(f"rank {environment.get('RANK', '?')}: the process that started it has ended; leaving, without a save.", file=sys.stderr)
    os._exit(1)


def main(arguments: Sequence[str]) -> int:
    """Become the command. Returns only if that cannot be."""
    parent, *command = arguments
    if number := _end_with_parent():
        print(f"{command[0]}: prctl: {os.strerror(number)}; it will not end with process {parent}.", file=sys.stderr)
    if os.getppid() != int(parent):
        return 1  # The parent ended before the kernel was asked.
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
