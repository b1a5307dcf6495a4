"""A loss that is not finite is noticed, never saved, and skipped where that was asked for."""

import json

import pytest

from tests.training.faults import POISONED_STEP

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "fp32"])
def test_a_poisoned_step_between_two_log_lines_is_not_saved(make_run, bf16):
    changes = {"bf16__enabled": bf16, "training__log_interval_steps": 100, "training__eval_interval_steps": 100}
    run = make_run(training__steps=6, **changes)
    run.start(fault="poison")
    code, output = run.finish()
    assert code == 1
    assert output.count(f"step {POISONED_STEP}: loss inf") == 1, "said by one rank"
    assert 'set training.non_finite to "skip"' in output
    assert run.tags() == ["step00000002"], "the save of step 4 would have held the poison"


def test_a_skipped_step_leaves_the_weights_and_the_run_goes_on(make_run):
    run = make_run(training__non_finite="skip", training__steps=6, training__log_interval_steps=2)
    run.start(fault="poison")
    code, output = run.finish()
    assert code == 0, output
    assert f"step {POISONED_STEP}: loss inf" in output
    assert "the optimizer left the weights as they were, going on (training.non_finite = skip)." in output
    text = (run.folder / "metrics.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]  # Infinity and NaN are no JSON.
    losses = {record["step"]: record["train/loss"] for record in records if "train/loss" in record}
    assert [step for step, loss in losses.items() if loss is None] == [POISONED_STEP]
    assert [record["train/skipped_steps"] for record in records if "train/skipped_steps" in record][-1] == 1
    assert losses[6] < losses[1]
    assert json.loads((run.folder / "results.json").read_text(encoding="utf-8"))["step"] == 6
