"""The watchdog of a rank's watchdog, a process beside the rank. Standard library only, and alone: it is run as a script.

A rank that is stopped (SIGSTOP), or kept inside C code that holds Python's lock, cannot end itself.

    python training/health/outside_watchdog.py RANK LIMIT_SECONDS

reads from standard input. The rank's watchdog writes to it as long as it can run; after LIMIT_SECONDS without a word it kills the process
that started it. It ends with that process.
"""

import os
import select
import signal
import sys
import time

LOOK_SECONDS = 1.0


def main(rank: str, limit_seconds: float) -> int:
    """Until the rank ends, or is ended."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # They are for the rank; launchers send them to all its children.
        signal.signal(number, signal.SIG_IGN)
    parent, silent = os.getppid(), 0.0
    while silent < limit_seconds:
        before = time.monotonic()
        ready, _, _ = select.select([sys.stdin], [], [], LOOK_SECONDS)
        if os.getppid() != parent or (ready and not os.read(sys.stdin.fileno(), 4096)):
            return 0
        # When the whole job was suspended, this process was too: the time does not count.
        silent = 0.0 if ready else silent + min(time.monotonic() - before, 2 * LOOK_SECONDS)
    print(
        f"rank {rank}: its watchdog has not run for {silent:.0f} s: stopped, or held inside C code. Killing it (process {parent}). "
        "Start again to resume from the last checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    os.kill(parent, signal.SIGKILL)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
