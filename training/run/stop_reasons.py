"""Why a run stops without a signal: a file that somebody puts into its folder, and the end of the time it was given."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from training.health.watchdog import PHASE_FACTOR, PHASE_MARGIN_SECONDS, Heartbeat

log = logging.getLogger(__name__)

STOP_FILE = "STOP"
# Before the first save there is nothing to judge its length by.
FIRST_SAVE_SHARE = 0.1


class StopReasons:
    """Asked by rank 0 after every step."""

    def __init__(self, folder: Path, stop_after_minutes: float | None, heartbeat: Heartbeat) -> None:
        self._file = folder / STOP_FILE
        self._limit_seconds = None if stop_after_minutes is None else 60 * stop_after_minutes
        self._heartbeat = heartbeat

    def find(self) -> str | None:
        """The reason to stop now, or None. The file is taken away, or the next start would stop as well."""
        if self._file.exists():
            try:
                self._file.unlink()
            except OSError as error:
                log.warning("%s cannot be removed (%s): remove it, or the next start will stop too.", self._file, error.strerror)
            return f"{self._file} was there"
        if self._limit_seconds is not None and seconds_since_start() + self._reserve_seconds(self._limit_seconds) > self._limit_seconds:
            return f"training.stop_after_minutes = {self._limit_seconds / 60:g} are nearly over"
        return None

    def _reserve_seconds(self, limit_seconds: float) -> float:
        """For the step under way, the one after it, an evaluation that may be due, and the save."""
        known = self._heartbeat.longest_seconds
        save = known.get("save", FIRST_SAVE_SHARE * limit_seconds)
        return 2 * known.get("step", 0.0) + known.get("evaluation", 0.0) + PHASE_FACTOR * save + PHASE_MARGIN_SECONDS


def seconds_since_start() -> float:
    """Since this process was started, its imports and the wait for other ranks included."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
