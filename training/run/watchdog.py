"""What a rank does when something else goes wrong: a hang, a signal.

A hung collective waits for ever (the process group's time limit does not cover the pipeline's subgroups), so each rank has a
watchdog thread. A signal asks for a stop that all ranks agree on, so the last checkpoint is one of the step everybody reached.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import torch
from deepspeed import comm as dist

from training.run.failure import RunError
from training.run.signals import SAME_PRESS_SECONDS, listen

log = logging.getLogger(__name__)

EXIT_HUNG = 75  # EX_TEMPFAIL: starting again from the last checkpoint is the right answer.
# A phase may take this much longer than the longest of its kind so far: disks and networks vary.
PHASE_FACTOR = 2.0
PHASE_MARGIN_SECONDS = 8.0
REMIND_SECONDS = 30.0


class Heartbeat:
    """The time of the last progress, watched by a thread that ends the process when it is too long ago."""

    def __init__(self, limit_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        self.last = time.monotonic()
        self.doing = ""
        self.longest_seconds: dict[str, float] = {}
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
        self.longest_seconds[name] = max(self.longest_seconds.get(name, 0.0), self.last - started)
        self.doing = ""

    def patience_seconds(self) -> float | None:
        """How long the phase under way may take if it is like those before; None if there was none before."""
        longest = self.longest_seconds.get(self.doing)
        return None if longest is None else PHASE_FACTOR * longest + PHASE_MARGIN_SECONDS

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

    def __init__(self, heartbeat: Heartbeat, device: torch.device, grace_seconds: float) -> None:
        self.signal_number = 0
        self._heartbeat = heartbeat
        self._device = device
        self._grace_seconds = grace_seconds
        self._asked_at = 0.0
        self._rank = int(os.environ.get("RANK", "0"))
        self._pending: tuple[torch.Tensor, object] | None = None
        listen(self._on_signal)

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

    @contextlib.contextmanager
    def excusing(self) -> Iterator[None]:
        """After a signal a lost connection is no failure: a peer that had it before it could save takes its connections with it."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            if not self.signal_number or isinstance(error, RunError):
                raise
            log.warning("rank %d: signal %d, and no save: %s", self._rank, self.signal_number, error)
            sys.stderr.flush()
            os._exit(128 + self.signal_number)

    def _on_signal(self, number: int) -> None:
        """In the signals' thread."""
        now = time.monotonic()
        if not self.signal_number:
            self._asked_at, self.signal_number = now, number
            threading.Thread(target=self._leave_in_time, name="leave", daemon=True).start()
        # Schedulers and launchers repeat SIGTERM; only a person presses Ctrl-C again.
        elif number == signal.SIGINT and now - self._asked_at > SAME_PRESS_SECONDS:
            log.warning("rank %d: Ctrl-C again; leaving without a save.", self._rank)
            os._exit(128 + number)

    def _leave_in_time(self) -> None:
        """Peers may be dead: leave when nothing moves for longer than it ever took, or the time for a stop is over."""
        if self._rank == 0:
            log.warning("%s: %s. Ctrl-C again ends at once.", signal.Signals(self.signal_number).name, self._expectation())
        reminded = time.monotonic()
        while (reason := self._overdue()) is None:
            time.sleep(0.25)
            if self._rank == 0 and time.monotonic() - reminded > REMIND_SECONDS:
                reminded = time.monotonic()
                log.warning("still %s", self._expectation())
        log.warning("rank %d: signal %d and %s; leaving without a save.", self._rank, self.signal_number, reason)
        os._exit(128 + self.signal_number)

    def _expectation(self) -> str:
        """What is being waited for."""
        known = self._heartbeat.longest_seconds
        phases = list(dict.fromkeys([self._heartbeat.doing or "step", "step", "save"]))
        times = [f"{name} ({f'longest so far {known[name]:.1f} s' if name in known else 'the first'})" for name in phases]
        left = self._grace_seconds - (time.monotonic() - self._asked_at)
        return f"waiting for: {', '.join(times)}; at most {left:.0f} s more (training.stop_grace_seconds)"

    def _overdue(self) -> str | None:
        """Why there is no more waiting, or None."""
        now = time.monotonic()
        if now - self._asked_at > self._grace_seconds:
            return f"training.stop_grace_seconds = {self._grace_seconds:.0f} are over during the {self._heartbeat.doing or 'step'}"
        patience = self._heartbeat.patience_seconds()
        silent = now - max(self._heartbeat.last, self._asked_at)
        return None if patience is None or silent < patience else f"no progress for {silent:.0f} s"
