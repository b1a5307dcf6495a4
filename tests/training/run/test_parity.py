"""The pipeline computes what a plain loop computes: the same losses on one stage, on two, and without DeepSpeed."""

import json
import re

import pytest

import ds_configs
from tests.training.conftest import TinyRun
from tests.training.plain_loop import train_plainly
from training.config import resolve, with_precision

STEPS = 20


@pytest.mark.distributed
@pytest.mark.parametrize("tied", [True, False])
def test_one_stage_two_stages_and_a_plain_loop_give_the_same_losses(make_run, tied):
    changes = {"model__dropout": 0.0, "model__tie_embeddings": tied, "training__steps": STEPS, "optimizer__params__lr": 0.003}
    # Evaluation and samples on one side only: they must leave no trace in the training.
    two = make_run(**changes, training__sample_prompt="明月", training__sample_tokens=4, training__save_interval_steps=100)
    two.run(ranks=2)
    one = make_run(**changes, pipeline__stages=1, training__eval_interval_steps=100, training__save_interval_steps=100)
    one.run(ranks=1)
    assert two.curve() == one.curve()  # Bit for bit, gradient norms too.

    records = [record for record in one.records() if "train/loss" in record]
    plain = train_plainly(with_precision(resolve(ds_configs.load(one.config)), True), [record["optim/lr"] for record in records]).losses
    # bf16 has eight bits; after some steps two ways of summing the same gradients may round a weight differently.
    assert plain == pytest.approx([record["train/loss"] for record in records], abs=1e-3)
    assert plain[-1] < plain[0] - 0.3, "the losses fall, so equal ones mean something"


@pytest.mark.distributed
def test_six_stages_times_two_replicas_train_with_every_pipeline_on_consecutive_ranks(make_run):
    run = make_run(pipeline__stages=6, training__steps=2, training__save_interval_steps=100, model__num_layers=4, model__dropout=0.0)
    output = run.run(ranks=12)
    placed = re.findall(r"pipeline (\d): ranks (\d+)-(\d+) on", output)
    assert placed == [("0", "0", "5"), ("1", "6", "11")]
    assert sorted(run.curve()) == [1, 2]
    manifest = json.loads((run.folder / "checkpoints" / run.tags()[0] / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["topology"] == {"pipe": 6, "data": 2}
    assert manifest["consumed_samples"] == 16

    # One pipeline of one stage goes on from it: fp32 masters and moments are carried over, the data order too.
    alone = run.run("pipeline.stages=1", "training.steps=3", ranks=1)
    assert "was saved with another topology" in alone
    assert sorted(run.curve()) == [1, 2, 3]


@pytest.mark.distributed
def test_the_config_that_a_run_wrote_starts_the_same_run_again(make_run):
    run = make_run(pipeline__stages=1, training__sample_tokens=0)
    run.run("training.steps=2", "optimizer.params.lr=0.02", ranks=1)
    record = run.folder / "config.json"
    written = ds_configs.load(record).values
    assert written == ds_configs.load(run.config, ["training.steps=2", "optimizer.params.lr=0.02"]).values

    again = TinyRun(record, run.root)
    again.folder = run.folder.parent / "again"
    try:
        again.run("run.name=again", ranks=1)
    finally:
        again.stop()
    assert sorted(again.curve()) == [1, 2]
    assert again.curve() == run.curve()  # bit for bit
    assert ds_configs.load(again.folder / "config.json", ["run.name=tiny"]).values == written
