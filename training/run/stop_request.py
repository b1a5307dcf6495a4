"""A stop that all ranks agree on, so the last checkpoint is one of the step everybody reached.

After a signal on any rank, for a file that somebody puts into the run's folder, or at the end of the time that the run was given.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from deepspeed import comm as dist

from ds_configs.commands import listen
from training.health.watchdog import PHASE_FACTOR, PHASE_MARGIN_SECONDS, Heartbeat
from training.launch.process_tree import stat_of
from training.run.failure import RunError
from training.run_folder.progress import STOP_FILE

log = logging.getLogger(__name__)

REMIND_SECONDS = 30.0
# Before the first save there is nothing to judge its length by.
FIRST_SAVE_SHARE = 0.1


class StopRequest:
    """A signal on any rank, or a reason that rank 0 finds, becomes one decision of all ranks, at the same step."""

    def __init__(
        self, heartbeat: Heartbeat, device: torch.device, grace_seconds: float, find_reason: Callable[[], str | None] = lambda: None
    ) -> None:
        """Listen from now on. `device` is where ranks tell each other; `find_reason` is asked once a step, on rank 0 only."""
        self.signal_number = 0
        self._heartbeat = heartbeat
        self._device = device
        self._grace_seconds = grace_seconds
        self._find_reason = find_reason
        self._reason: str | None = None
        self._asked_at = 0.0
        self._rank = int(os.environ.get("RANK", "0"))
        self._pending: tuple[torch.Tensor, object] | None = None
        listen(self._on_signal, self._on_second_press)

    def agreed(self) -> bool:
        """True on every rank at the same call, if any rank has a reason to stop. Call once per step, on all ranks.

        The answer is the one asked for in the call before: no rank waits for another here, but for what its device has to do up to here.
        """
        decided = False
        if self._pending is not None:
            flag, work = self._pending
            work.wait()  # type: ignore[attr-defined]
            decided = bool(flag.item())
        if self._rank == 0 and self._reason is None and (reason := self._find_reason()) is not None:
            self._reason = reason
            log.warning("%s: stopping with a checkpoint.", reason)
        flag = torch.tensor([float(self.signal_number != 0 or self._reason is not None)], device=self._device)
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
        self._asked_at, self.signal_number = time.monotonic(), number
        threading.Thread(target=self._leave_in_time, name="leave", daemon=True).start()

    def _on_second_press(self, number: int) -> None:
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


def reason_to_stop(folder: Path, minutes: float | None, heartbeat: Heartbeat) -> str | None:
    """Why to stop now, or None. Rank 0 asks after every step. The file is taken away, or the next start would stop as well."""
    file = folder / STOP_FILE
    if file.exists():
        try:
            file.unlink()
        except OSError as error:
            log.warning("%s cannot be removed (%s): remove it, or the next start will stop too.", file, error.strerror)
        return f"{file} was there"
    if minutes is None:
        return None
    known = heartbeat.longest_seconds
    # For the step under way, the one after it, an evaluation that may be due, and the save.
    reserve = 2 * known.get("step", 0.0) + known.get("evaluation", 0.0)
    reserve += PHASE_FACTOR * known.get("save", FIRST_SAVE_SHARE * 60 * minutes) + PHASE_MARGIN_SECONDS
    # Of this process: its imports and the wait for other ranks count as well.
    started = int(stat_of(os.getpid())[19]) / os.sysconf("SC_CLK_TCK")
    if time.clock_gettime(time.CLOCK_BOOTTIME) - started + reserve <= 60 * minutes:
        return None
    return f"training.stop_after_minutes = {minutes:g} are nearly over"
