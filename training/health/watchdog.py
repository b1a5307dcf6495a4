"""The watchdog of a rank. A hung collective waits for ever (the process group's time limit does not cover the pipeline's subgroups).

A thread ends a rank that waits. One that cannot run its own threads is killed by a process beside it (`outside_watchdog.py`).
"""

import contextlib
import faulthandler
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from training.health import outside_watchdog

log = logging.getLogger(__name__)

EXIT_HUNG = 75  # EX_TEMPFAIL: starting again from the last checkpoint is the right answer.
# A phase may take this much longer than the longest of its kind so far: disks and networks vary.
PHASE_FACTOR = 2.0
PHASE_MARGIN_SECONDS = 8.0
LOOK_SECONDS = 5.0


class Heartbeat:
    """The time of the last progress, watched by a thread that ends the process when it is too long ago."""

    def __init__(self, limit_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        self.last = time.monotonic()
        self.doing = ""
        self.longest_seconds: dict[str, float] = {}
        # Later than the thread, and than the threads of peers, which say where they stood.
        limit = limit_seconds + LOOK_SECONDS
        command = [sys.executable, "-I", "-S", outside_watchdog.__file__, os.environ.get("RANK", "?"), str(limit)]
        self._outside = subprocess.Popen(command, stdin=subprocess.PIPE)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        """Note progress."""
        self.last = time.monotonic()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note what is being done, and how long it took when it is over: progress."""
        self.beat()
        started, self.doing = self.last, name
        yield
        self.beat()
        self.took(name, self.last - started)
        self.doing = ""

    def took(self, name: str, seconds: float) -> None:
        """Note how long something of this kind can take."""
        self.longest_seconds[name] = max(self.longest_seconds.get(name, 0.0), seconds)

    def patience_seconds(self) -> float | None:
        """How long the phase under way may take if it is like those before; None if there was none before."""
        longest = self.longest_seconds.get(self.doing)
        return None if longest is None else PHASE_FACTOR * longest + PHASE_MARGIN_SECONDS

    def _watch(self) -> None:
        pause = min(LOOK_SECONDS, self.limit_seconds / 4)
        guarded = True
        while True:
            before = time.monotonic()
            time.sleep(pause)
            overslept = time.monotonic() - before - pause
            if overslept > LOOK_SECONDS:  # This process was suspended (Ctrl-Z) or busy with an import: not time in which to wait for peers.
                self.last = min(self.last + overslept, time.monotonic())
            if guarded:
                guarded = self._tell_outside()
            silent = time.monotonic() - self.last
            if silent > self.limit_seconds:
                log.error(
                    "rank %s: no progress for %.0f s (training.watchdog_seconds = %.0f); stacks follow, then exit code %d. "
                    "Usual causes: a dead peer, a lost link. Start again to resume from the last checkpoint.",
                    os.environ.get("RANK"), silent, self.limit_seconds, EXIT_HUNG,
                )  # fmt: skip
                faulthandler.dump_traceback(file=sys.stderr)
                os._exit(EXIT_HUNG)

    def _tell_outside(self) -> bool:
        """Say to the process beside this one that threads can run here. False if it is gone."""
        assert self._outside.stdin
        try:
            os.write(self._outside.stdin.fileno(), b".")
        except OSError:
            log.warning(
                "rank %s: the process that watches its watchdog was ended; going on without: should this rank be stopped, nothing ends it.",
                os.environ.get("RANK"),
            )
            return False
        return True
