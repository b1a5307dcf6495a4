"""Who is slow is named: stages and replicas, from times that can be worked out by hand, and in a run whose rank 1 is slow."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from tests.training.conftest import train_many
from training.health.stage_clock import CLEARLY, DeviceTimes, StageClock, pipeline_figures, slow_phrase

SLEEP_SECONDS = 0.1


def times(work, step=10.0):
    """(replicas, stages) seconds of work in steps of equal length -> (replicas, stages, 2)."""
    work = np.array(work, dtype=float)
    return np.stack([work, step - work], axis=-1)


def test_a_slow_stage_is_named_with_what_the_others_wait():
    figures = pipeline_figures(times([[3, 9, 5], [3, 9, 5]]))
    assert figures["pipeline/slowest_stage"] == 1
    assert figures["pipeline/slowest_stage_factor"] == pytest.approx(9 / 4)
    assert [figures[f"pipeline/stage_{stage}_wait_ratio"] for stage in range(3)] == pytest.approx([0.7, 0.1, 0.5])
    assert slow_phrase(figures) == "slow: stage 1 (2.2x, the others wait 60%)"


@pytest.mark.parametrize("replicas", [2, 32])
def test_a_slow_rank_is_named_with_its_replica_and_makes_no_slow_stage(replicas):
    work = np.full((replicas, 3), 4.0)
    work[-1, 1] = 8.0
    figures = pipeline_figures(times(work))
    assert figures["pipeline/slowest_replica"] == replicas - 1
    assert slow_phrase(figures) == f"slow: replica {replicas - 1} (rank {3 * replicas - 2} 2.0x)"


def test_ordinary_unevenness_is_no_news():
    assert slow_phrase(pipeline_figures(times([[4, 4 * CLEARLY - 0.01], [4, 4]]))) == ""


def test_nothing_is_said_before_anything_was_measured():
    figures = pipeline_figures(np.zeros((2, 2, 2)))
    assert figures == {}
    assert slow_phrase(figures) == ""


def test_one_rank_alone_has_nobody_to_be_compared_with():
    figures = pipeline_figures(times([[10.0]]))
    assert figures == {"pipeline/stage_0_work_seconds": 10.0, "pipeline/stage_0_wait_ratio": 0.0}


class Queue(DeviceTimes):
    """A device's events, of which nobody may ask before all of the interval is over."""

    def __init__(self):
        self.now, self.finished = 0.0, False

    def moment(self):
        return self.now

    def seconds(self, first, second):
        assert self.finished
        return second - first


def test_a_device_is_asked_for_its_times_at_the_end_of_an_interval_only():
    queue = Queue()
    clock = StageClock(queue)
    with clock.step():
        queue.now += 50.0  # The first one prepares what the others only use.
    for _ in range(2):
        queue.finished = False
        for _ in range(int(queue.steps_an_interval) + 5):
            with clock.step():
                queue.now += 1.0
                with clock.waiting():
                    queue.now += 3.0
                queue.now += 2.0
            with clock.waiting():
                queue.now += 100.0  # Of an evaluation.
        queue.finished = True
        assert clock.read() == [3.0, 3.0]


@pytest.mark.distributed
@pytest.mark.alone
def test_a_run_names_its_slow_stage_and_its_slow_replica(make_run):
    # An evaluation is slow as well.
    changes = {"training__steps": 2, "training__sample_tokens": 0, "training__eval_batches": 1}
    staged, replicated = make_run(**changes), make_run(**changes, pipeline__stages=1)
    job = {"world": 2, "slow": {"rank": 1, "seconds": SLEEP_SECONDS}}
    begin = time.perf_counter()
    logged = train_many([{"config": str(run.config), **job} for run in (staged, replicated)])
    assert time.perf_counter() - begin > 4 * SLEEP_SECONDS
    one, two = [
        json.loads(run.folder.joinpath("metrics.jsonl").read_text(encoding="utf-8").splitlines()[-2]) for run in (staged, replicated)
    ]
    # Four micro-batches for the pipeline, two for each replica. Rank 0 waits for them, but for the milliseconds that it works.
    assert one["pipeline/slowest_stage"] == 1
    assert one["pipeline/stage_1_work_seconds"] > 4 * SLEEP_SECONDS
    assert one["pipeline/stage_0_wait_ratio"] > 0.5 > one["pipeline/stage_1_wait_ratio"]
    assert two["pipeline/slowest_replica"] == two["pipeline/slowest_rank"] == 1
    assert two["pipeline/slowest_replica_factor"] > CLEARLY
    assert "| slow: stage 1 (" in logged
    assert "| slow: replica 1 (rank 1 " in logged
