"""DeepSpeed's schedule, played: what is known exactly for equal stages, and what any schedule must keep."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from training.planning import schedule
from training.planning.schedule import StageSeconds, one_after_the_other, play


@pytest.mark.parametrize("stages", [1, 2, 3, 6])
@pytest.mark.parametrize("micro_batches", [1, 2, 5, 24])
def test_equal_stages_take_a_slot_for_each_micro_batch_and_one_for_each_further_stage(stages, micro_batches):
    played = play([StageSeconds(forward=1.0, backward=2.0)] * stages, micro_batches)
    # 1F1B: Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters" (2021), section 2.2.
    assert played.seconds == pytest.approx(3.0 * (micro_batches + stages - 1))
    assert played.bubble == pytest.approx((1 - micro_batches / (micro_batches + stages - 1),) * stages)


def test_no_stage_does_two_things_at_once_and_no_micro_batch_is_ahead_of_itself():
    random.seed(3)
    stages = [StageSeconds(forward=random.uniform(1, 2), backward=random.uniform(1, 4), step=0.5) for _ in range(5)]
    spans = play(stages, 9, transfer_seconds=0.25).spans
    for stage in range(5):
        own = [span for span in spans if span.stage == stage]
        assert all(one.end <= other.start + 1e-9 for one, other in pairwise(own))
    at = {(span.kind, span.stage, span.micro_batch): span for span in spans}
    for number in range(9):
        for stage in range(4):
            assert at["forward", stage + 1, number].start >= at["forward", stage, number].end + 0.25 - 1e-9
            assert at["backward", stage, number].start >= at["backward", stage + 1, number].end + 0.25 - 1e-9
        assert at["backward", 4, number].start >= at["forward", 4, number].end - 1e-9


def test_no_stage_updates_before_the_slowest_has_its_gradients_for_the_norm_is_taken_over_all():
    stages = [StageSeconds(forward=1.0, backward=2.0, reduce=reduce, step=step) for reduce, step in ((0.5, 0.25), (9.0, 1.0))]
    played = play(stages, 4)
    # The second stage ends two seconds before the first, which hands its last gradients back.
    assert played.seconds == pytest.approx(3.0 * (4 + 1) - 2.0 + 9.0 + 1.0)
    assert {span.start for span in played.spans if span.kind == "step"} == {played.seconds - 1.0}


def test_a_long_step_that_is_continued_from_its_middle_is_as_long_as_one_played_to_its_end():
    random.seed(5)
    for count in (1, 2, 3, 6):
        stages = [StageSeconds(forward=random.uniform(1, 2), backward=random.uniform(1, 4), step=0.5) for _ in range(count)]
        seconds, spans = schedule._play(stages, 100, 0.1)
        assert play(stages, 100, 0.1).seconds == pytest.approx(seconds, rel=1e-3)  # The slowest stage's period sets in gradually.
        passes = [span for span in spans if span.kind in ("forward", "backward")]
        busy = [sum(span.end - span.start for span in passes if span.stage == stage) for stage in range(count)]
        assert play(stages, 100, 0.1).busy == pytest.approx(busy)


def test_without_a_pipeline_one_stage_is_busy_at_a_time():
    stages = [StageSeconds(forward=1.0, backward=2.0, step=0.5)] * 4
    assert one_after_the_other(stages, 10, 0.1) == pytest.approx(10 * (4 * 3 + 2 * 3 * 0.1) + 0.5)
    assert one_after_the_other(stages, 10) > play(stages, 10).seconds
