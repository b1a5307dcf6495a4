"""Which stage and which replica hold the others up, from the times of all ranks (`stage_clock.py`)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Slower than the others by less is a partition's ordinary unevenness.
CLEARLY = 1.25


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
