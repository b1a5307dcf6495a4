"""Time lost to failures, and the interval between checkpoints that loses least."""

from __future__ import annotations

import math
from dataclasses import dataclass

WEEK_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Save:
    """How long a save takes, and how much of that training waits."""

    seconds: float
    stall_seconds: float


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Shares of the time."""

    saving: float
    repeating: float
    """Steps since the last checkpoint that are done twice, and restarts."""

    @property
    def all(self) -> float:
        """Time that is not training."""
        return self.saving + self.repeating


def losses(save: Save, interval_seconds: float, failures_per_week: float, restart_seconds: float) -> Losses:
    """With saves at this interval; a failure falls in the middle of one on average. To first order, for few failures."""
    rate = failures_per_week / WEEK_SECONDS
    return Losses(
        saving=save.stall_seconds / (interval_seconds + save.stall_seconds),
        repeating=min(1.0, rate * (interval_seconds / 2 + save.seconds + restart_seconds)),
    )


def best_interval_seconds(save: Save, failures_per_week: float) -> float:
    """The interval that loses least: sqrt(2 x stall x time between failures); not shorter than a save takes.

    J. W. Young, "A first order approximation to the optimum checkpoint interval", Communications of the ACM 17 (1974).
    """
    if failures_per_week == 0:
        return math.inf
    return max(save.seconds, math.sqrt(2 * save.stall_seconds * WEEK_SECONDS / failures_per_week))
