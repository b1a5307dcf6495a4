"""How long each rank computes and how long it waits for others; and from these times of all ranks, who holds the others up.

A rank waits in what it does together with others: sends, receives and collectives, their transfer included. All else inside a step is
work: forward and backward passes, the optimizer, reading the data. What a rank works does not depend on its peers, so a slow one shows.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.pipe import schedule

TOGETHER = (
    schedule.SendActivation, schedule.RecvActivation, schedule.SendGrad, schedule.RecvGrad, schedule.ReduceGrads, schedule.ReduceTiedGrads,
)  # fmt: skip
# Slower than the others by less is a partition's ordinary unevenness.
CLEARLY = 1.25


class HostTimes:
    """How time is taken: here by the host's clock, for CPUs, which compute before a call returns."""

    steps_an_interval = float("inf")
    at_once = True  # Whether a moment can be read as soon as it was taken.

    def moment(self) -> Any:
        """Now, in the order of what the rank has asked its device for."""
        return time.perf_counter()

    def seconds(self, first: Any, second: Any) -> float:
        """Between two moments that are over."""
        return float(second - first)


class DeviceTimes(HostTimes):
    """Events in the device's queue: they say when the device got there, and nobody waits for it.

    A receive or a collective holds up this queue until it is over, so the device's waiting shows here and not on the host's clock.
    """

    steps_an_interval = 8.0  # Some hundred events each, kept until the interval's end.
    at_once = False

    def moment(self) -> Any:
        """An event."""
        event = get_accelerator().Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, first: Any, second: Any) -> float:
        """Between two events that the device has passed."""
        return float(first.elapsed_time(second)) / 1000


WORK, WAIT, OUTSIDE = range(3)


class StageClock:
    """Work and waiting of one rank, over the steps since the last `read`."""

    def __init__(self, times: HostTimes | None = None) -> None:
        self._times = times or (HostTimes() if get_accelerator().use_host_timers() else DeviceTimes())
        self._marks: list[tuple[Any, int]] = []  # A moment, and what the rank does from it on.
        self._totals = [0.0, 0.0, 0.0]
        self._steps = 0
        self._warm = False
        self._running = False

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around a step. The first one of a start is not measured, nor on a device the later ones of an interval."""
        self._running = self._warm and self._steps < self._times.steps_an_interval
        self._mark(WORK)
        yield
        self._mark(OUTSIDE)
        self._steps += self._running
        self._warm, self._running = True, False
        if self._times.at_once:
            self._add_up()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what is done together with other ranks. Outside of a step (an evaluation) nothing is measured."""
        self._mark(WAIT)
        yield
        self._mark(WORK)

    def read(self) -> list[float]:
        """Seconds of work and of waiting a step (0 if none was measured), and begin anew.

        Call it when the device has finished the interval's last step.
        """
        self._add_up()
        means = [total / max(self._steps, 1) for total in self._totals[:OUTSIDE]]
        self._totals, self._steps = [0.0, 0.0, 0.0], 0
        return means

    def _mark(self, begins: int) -> None:
        if self._running:
            self._marks.append((self._times.moment(), begins))

    def _add_up(self) -> None:
        for (begin, kind), (end, _) in itertools.pairwise(self._marks):
            self._totals[kind] += self._times.seconds(begin, end)
        self._marks = []


def timed(instructions: Mapping[Any, Callable[..., None]]) -> dict[Any, Callable[..., None]]:
    """The pipeline's instructions, of which those that are done together with others are measured by `engine.clock`."""
    return {kind: _waiting(execute) if kind in TOGETHER else execute for kind, execute in instructions.items()}


def _waiting(execute: Callable[..., None]) -> Callable[..., None]:
    def measured(engine: Any, **arguments: Any) -> None:
        with engine.clock.waiting():
            execute(engine, **arguments)

    return measured


def pipeline_figures(seconds: np.ndarray) -> dict[str, float]:
    """Values for the curves.

    Args:
        seconds: Of work and of waiting a step, (replicas, stages, 2).

    Returns:
        Of each stage its work and the share of a step that it waits, as means over replicas. Of the slowest stage, and of the rank that is
        slowest among those of its stage, with its replica: how many times as long as the others it works. Nothing if nothing was measured.
    """
    if not seconds.any():
        return {}
    replicas, stages, _ = seconds.shape
    figures: dict[str, float] = {}
    for stage, (work, wait) in enumerate(seconds.mean(axis=0).tolist()):
        figures |= {f"pipeline/stage_{stage}_work_seconds": work, f"pipeline/stage_{stage}_wait_ratio": wait / max(work + wait, 1e-9)}
    works = seconds[:, :, 0]
    if stages > 1:
        # A stage is as fast as half of its ranks: one slow replica of two makes no slow stage.
        stage, factor = _slowest(np.quantile(works, 0.5, axis=0, method="lower"))
        figures |= {"pipeline/slowest_stage": stage, "pipeline/slowest_stage_factor": factor}
    if replicas > 1:
        slowest = [(factor, replica, stage) for stage in range(stages) for replica, factor in [_slowest(works[:, stage])]]
        factor, replica, stage = max(slowest)
        figures |= {"pipeline/slowest_replica": replica, "pipeline/slowest_rank": replica * stages + stage}
        figures["pipeline/slowest_replica_factor"] = factor
    return figures


def _slowest(work: np.ndarray) -> tuple[int, float]:
    """Which of some works longest, and how many times as long as the median of the others."""
    index = int(work.argmax())
    return index, float(work[index] / max(np.median(np.delete(work, index)), 1e-9))


def slow_phrase(figures: Mapping[str, float]) -> str:
    """Who is clearly slower than the others, for the log line; empty if nobody is."""
    found = []
    if figures.get("pipeline/slowest_stage_factor", 0) > CLEARLY:
        slowest = int(figures["pipeline/slowest_stage"])
        own = f"pipeline/stage_{slowest}_wait_ratio"
        waits = [value for tag, value in figures.items() if tag.endswith("_wait_ratio") and tag != own]
        found.append(
            f"stage {slowest} ({figures['pipeline/slowest_stage_factor']:.1f}x, the others wait {100 * sum(waits) / len(waits):.0f}%)"
        )
    if figures.get("pipeline/slowest_replica_factor", 0) > CLEARLY:
        replica, rank = int(figures["pipeline/slowest_replica"]), int(figures["pipeline/slowest_rank"])
        found.append(f"replica {replica} (rank {rank} {figures['pipeline/slowest_replica_factor']:.1f}x)")
    return f"slow: {', '.join(found)}" if found else ""
