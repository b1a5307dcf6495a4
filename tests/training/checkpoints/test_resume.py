"""A run that was killed, stopped or damaged ends where an uninterrupted one does, bit for bit, dropout on."""

import os
import re
import shutil
import signal

import pytest
import torch

from tests.data.stores import flip_bit
from tests.training.checkpoint_files import tied_master
from training.checkpoints.find_and_verify import LATEST

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def uninterrupted(make_run):
    run = make_run(training__save_interval_steps=100)
    run.run()
    return run.curve()


def test_kills_at_a_step_and_in_a_save_cost_at_most_the_steps_since_the_last_checkpoint(make_run, uninterrupted):
    run = make_run()
    run.start()
    run.wait_for(lambda: (run.folder / "checkpoints/step00000002/manifest.json").exists() and len(run.curve()) >= 3, "step 3")
    os.kill(run.rank_process(0), signal.SIGKILL)
    assert run.finish()[0] != 0

    # The other rank dies in the middle of the next save it takes part in at step 6: the folder is there, and nothing publishes it.
    run.start(fault="kill in save")
    code, output = run.finish()
    assert code != 0
    assert "resuming" in output
    assert list((run.folder / "checkpoints/step00000006").glob("layer_*"))
    assert run.tags()[-1] == "step00000004"
    assert (run.folder / "checkpoints" / LATEST).read_text(encoding="utf-8") == "step00000004"

    output = run.run()
    assert "from step 4 of 8" in output
    assert run.curve() == uninterrupted  # Exact: same order, same seeds, same random state, same devices.
    assert sorted(run.curve()) == list(range(1, 9))


def test_a_stop_asked_of_one_rank_is_saved_by_all_and_a_damaged_checkpoint_costs_one_interval(make_run, uninterrupted):
    run = make_run(training__save_interval_steps=3)
    run.start()
    run.wait_for(lambda: len(run.curve()) >= 4, "step 4")
    os.kill(run.rank_process(1), signal.SIGTERM)
    code, output = run.finish()
    assert code != 0
    assert "stopped at step" in output
    stopped_at = max(run.curve())
    assert run.tags()[-1] == f"step{stopped_at:08d}"

    layer = run.folder / "checkpoints" / run.tags()[-1] / "layer_02-model_states.pt"
    flip_bit(layer, layer.stat().st_size // 2)

    output = run.run()
    assert "layer_02-model_states.pt was changed after it was written" in output
    assert "resuming" in output
    assert "from step 3 of 8" in output
    assert run.curve() == uninterrupted

    for tag in run.tags():
        flip_bit(run.folder / "checkpoints" / tag / "layer_02-model_states.pt", 9)
    run.start("training.steps=9")
    code, output = run.finish()
    assert code == 2  # Nothing that a start could mend: a supervisor must not try again.
    assert "no other checkpoint of" in output


def test_a_checkpoint_that_cannot_be_read_is_waited_for_and_neither_passed_over_nor_removed(make_run, uninterrupted):
    run = make_run(training__keep_checkpoints=2)
    run.start()
    run.wait_for(lambda: "step00000004" in run.tags(), "the save of step 4")
    run.stop()
    shutil.rmtree(run.folder / "checkpoints/step00000006", ignore_errors=True)
    for fault, said in {
        "read error": r"rank 1 on \S+: \S+step00000004\S* cannot be read \(Input/output error\)\. So no older checkpoint takes its place",
        "lagging host": r"step00000004/\S+ is missing.* for rank 1 on \S+, but not for all ranks\. So no older checkpoint",
        "lagging host for a moment": r"step00000004/\S+ is missing for rank 1 on \S+, but not for all ranks\. So no older checkpoint",
    }.items():
        run.start(fault=fault)
        code, output = run.finish()
        assert code == 1, "a supervisor tries again"
        assert len(re.findall(said, output)) == 1, output
        assert "TCPStore" not in output
        assert run.tags() == ["step00000002", "step00000004"]
    run.start(fault="read error for a moment")
    code, output = run.finish()
    assert code == 0
    assert "from step 4 of 8" in output
    assert run.curve() == uninterrupted


def test_a_save_that_fails_leaves_the_checkpoints_before_it_and_the_run_goes_on(make_run):
    run = make_run(training__steps=4, training__save_interval_steps=2)
    run.run("training.steps=2")
    # No file may grow over 40 kB, as on a disk that is full: the optimizer's does not fit.
    run.start(file_bytes=40_000)
    code, output = run.finish()
    assert code == 1
    assert "was not saved" in output
    assert "step 4/4" in output
    assert run.tags() == ["step00000002"]
    assert "could not be saved" in output


def test_a_changed_learning_rate_or_optimizer_setting_takes_effect_on_resume_and_is_said(make_run):
    run = make_run(scheduler__type="WarmupLR", scheduler__params={"warmup_num_steps": 2, "warmup_type": "linear", "warmup_max_lr": 0.01})
    run.run("training.steps=4")
    output = run.run(
        *("scheduler.params.warmup_max_lr=0.002", "scheduler.params.warmup_num_steps=4", "optimizer.params.weight_decay=0.3"),
        *("optimizer.params.amsgrad=true", "training.steps=6"),
    )
    assert "changed since the checkpoint: optimizer.params.weight_decay of group 0: 0.1 -> 0.3" in output
    assert "optimizer.params.amsgrad of group 1: False -> True" in output, "which has a state more"
    assert "learning rate: 0.01 -> 0.002" in output
    assert "changed since the last start: scheduler.params.warmup_num_steps: 2 -> 4" in output, "where the rate tells nothing of it"
    rates = {record["step"]: record["optim/lr"] for record in run.records() if "optim/lr" in record}
    assert rates[4] == 0.01
    assert rates[5] == 0.002


def test_a_run_of_so_many_tokens_reads_them_also_with_another_batch_from_a_resume_on(make_run):
    run = make_run(training__steps=None, training__tokens=8 * 8 * 16)  # Eight steps of 8 rows of 16 tokens.
    run.run("training.tokens=512")
    output = run.run("train_batch_size=16")
    assert "4 steps have read 32 samples; from now on a step reads train_batch_size = 16" in output
    assert "step 6/6" in output
    assert run.records()[-2]["train/tokens"] == 8 * 8 * 16
    assert "is finished: step 6 of 6" in run.run("train_batch_size=16")


def test_another_model_in_the_same_folder_is_refused_before_anything_starts(make_run):
    run = make_run(training__steps=2)
    run.run()
    run.start("model.num_layers=3", "run.name=tiny", "training.steps=3")
    code, output = run.finish()
    assert code == 2
    assert "model.num_layers was 2, is 3" in output
    assert "Use another run.name" in output


def test_another_topology_goes_on_bit_for_bit_and_tied_weights_stay_equal_on_both_stages(make_run):
    warmup = {"warmup_num_steps": 2, "warmup_type": "linear", "warmup_max_lr": 0.01}  # No end, so steps=4 is a piece of steps=8.
    changes = {"model__dropout": 0.0, "scheduler__type": "WarmupLR", "scheduler__params": warmup, "training__eval_interval_steps": 100}
    run, moved = make_run(**changes), make_run(**changes)
    run.run("training.steps=4")
    shutil.copytree(run.folder, moved.folder)
    run.run("training.steps=8")
    output = moved.run("training.steps=8", "pipeline.stages=4", ranks=4)
    assert "was saved with another topology" in output
    assert moved.curve() == run.curve()  # Both keep the matrix twice and add its gradients in fp32.

    for folder, stages in ((run.folder, 2), (moved.folder, 4)):
        checkpoint = folder / "checkpoints/step00000008"
        assert torch.equal(tied_master(checkpoint, 0), tied_master(checkpoint, stages - 1))
