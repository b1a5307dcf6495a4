"""What a rank does when something else goes wrong: a hang, a signal.

A hung collective waits for ever (the process group's time limit does not cover the pipeline's subgroups), so each rank has a
watchdog thread. A signal asks for a stop that all ranks agree on, so the last checkpoint is one of the step everybody reached.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from types import FrameType

import torch
from deepspeed import comm as dist

log = logging.getLogger(__name__)

EXIT_HUNG = 75  # EX_TEMPFAIL: starting again from the last checkpoint is the right answer.
# The launcher ends its ranks one after the other and gives each 30 s before SIGKILL.
LEAVE_AFTER_SECONDS = (8.0, 25.0)


class Heartbeat:
    """The time of the last progress, watched by a thread that ends the process when it is too long ago."""

    def __init__(self, limit_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        self.last = time.monotonic()
        self.longest_step_seconds = 0.0
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        """Note progress."""
        now = time.monotonic()
        self.longest_step_seconds = max(self.longest_step_seconds, now - self.last)
        self.last = now

    def _watch(self) -> None:
        while True:
            time.sleep(min(5.0, self.limit_seconds / 4))
            silent = time.monotonic() - self.last
            if silent > self.limit_seconds:
                log.error(
                    "rank %s: no progress for %.0f s (training.watchdog_seconds = %.0f); stacks follow, then exit code %d. "
                    "Usual causes: a dead peer, a lost link. Start again to resume from the last checkpoint.",
                    os.environ.get("RANK"), silent, self.limit_seconds, EXIT_HUNG,
                )  # fmt: skip
                faulthandler.dump_traceback(file=sys.stderr)
                os._exit(EXIT_HUNG)


class StopRequest:
    """SIGTERM or SIGINT on any rank becomes one decision of all ranks, at the same step."""

    def __init__(self, heartbeat: Heartbeat, device: torch.device) -> None:
        self.signal_number = 0
        self._heartbeat = heartbeat
        self._device = device
        self._pending: tuple[torch.Tensor, object] | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def agreed(self) -> bool:
        """True on every rank at the same call, if any rank has had a signal. Call once per step, on all ranks.

        The answer is the one asked for in the call before, so nobody waits for the device here.
        """
        decided = False
        if self._pending is not None:
            flag, work = self._pending
            work.wait()  # type: ignore[attr-defined]
            decided = bool(flag.item())
        flag = torch.tensor([float(self.signal_number != 0)], device=self._device)
        self._pending = (flag, dist.all_reduce(flag, op=dist.ReduceOp.MAX, async_op=True))
        return decided

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number:
            return
        self.signal_number = number
        threading.Thread(target=self._leave_in_time, args=(number,), name="leave", daemon=True).start()

    def _leave_in_time(self, number: int) -> None:
        """Peers may be dead: without progress, leave before the launcher runs out of patience."""
        shortest, longest = LEAVE_AFTER_SECONDS
        patience = min(longest, max(shortest, 2 * self._heartbeat.longest_step_seconds))
        while time.monotonic() - self._heartbeat.last < patience:
            time.sleep(0.5)
        log.warning("rank %s: signal %d and no progress for %.0f s; leaving without a save.", os.environ.get("RANK"), number, patience)
        os._exit(128 + number)
