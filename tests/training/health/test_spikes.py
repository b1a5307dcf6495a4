"""A spike of the loss is found, the run goes back and leaves the samples out, and that stays so in whatever goes on from there."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest

import ds_configs
from data.batches.permutation import place
from ds_configs import ConfigError, build_section
from tests.training.conftest import train_many
from tests.training.faults import STRANGE_SAMPLES
from training.config import resolve
from training.health.rewind import rewind
from training.health.spikes import Spike, SpikeConfig, Spikes
from training.launch.process_group import Ranks
from training.launch.world import World
from training.run.failure import RunError

SPIKE = {"factor": 1.1, "window_steps": 4}


def records(losses, first=1):
    return [{"step": step, "train/loss": loss} for step, loss in enumerate(losses, first)]


def spikes(**changes):
    return Spikes(SpikeConfig(**{**SPIKE, **changes}))


def test_a_loss_far_above_the_median_of_the_window_is_a_spike():
    assert spikes().find(records([4.0, 4.0, 4.0, 4.0, 4.4])) is None, "not above the factor"
    assert spikes().find(records([4.0, 4.0, 4.0, 4.0, 5.1, 9.0])) == Spike(step=5, loss=5.1, median=4.0)
    assert spikes().find(records([9.0, 4.0, 4.0, 4.0, 5.1])) == Spike(step=5, loss=5.1, median=4.0), "one high loss before hides none"


def test_there_is_no_spike_before_the_window_is_full_nor_one_of_a_loss_that_is_not_finite():
    assert spikes().find(records([1.0, 1.0, 1.0, 50.0])) is None
    assert spikes().find(records([1.0, 1.0, 1.0, float("nan"), float("inf"), 1.0, float("inf")])) is None


def test_the_window_reaches_over_reads_and_is_saved():
    one = spikes()
    assert one.find(records([4.0, 4.0])) is None
    assert one.find(records([4.0, 4.0])) is None
    other = Spikes(one.config, json.loads(json.dumps(one.facts()))["spikes"])
    assert one.find(records([6.0], first=5)) == other.find(records([6.0], first=5)) == Spike(step=5, loss=6.0, median=4.0)


def test_what_is_left_out_adds_up_over_rewinds_and_stays_without_the_section():
    state = spikes()
    state.go_back(None, consumed=32, end=48)
    saved = json.loads(json.dumps(state.facts()))["spikes"]  # At 64 samples, say, which are those up to index 79.
    state.go_back(saved, consumed=64, end=100)
    state.go_back(saved, consumed=64, end=120)  # A spike again, before the next save.
    assert state.rewinds == 3
    assert state.skipped == [(32, 48), (80, 120)]
    assert sum(end - first for first, end in state.skipped) == 56
    assert state.samples_of(9, SimpleNamespace(global_steps=10, global_samples=76), batch_size=8) == (76, 123)
    later = Spikes(None, state.facts()["spikes"])
    assert later.facts()["spikes"]["skipped_samples"] == [(32, 48), (80, 120)]
    assert Spikes(None).facts() == {}


def test_every_sample_but_those_left_out_has_its_place():
    left_out = [(3, 5), (5, 6), (9, 10)]
    assert [place(number, left_out) for number in range(8)] == [0, 1, 2, 6, 7, 8, 10, 11]


@pytest.mark.parametrize("wrong", [{"factor": 1.0}, {"factor": 2.0, "window_steps": 0}, {"factor": 2.0, "max_rewinds": 0}])
def test_settings_without_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match="must be"):
        build_section(SpikeConfig, wrong, "training.spike", "a.json")


@pytest.mark.parametrize("rewinds", [2, 3])
def test_a_run_does_not_go_back_more_often_than_a_later_start_allows(make_run, rewinds):
    state = Spikes(SpikeConfig(factor=1.1, max_rewinds=2), {"rewinds": rewinds})
    config = resolve(ds_configs.load(make_run().config))
    world = World(rank=0, local_rank=0, size=2, local_size=2, master_addr="localhost", master_port=1)
    ranks = Ranks(world=world, replica=0, stage=0, replicas=1, stages=2)
    at_step_9 = SimpleNamespace(global_steps=9, global_samples=72)
    with pytest.raises(RunError, match=r"on samples 64 to 71, and training\.spike\.max_rewinds = 2 are used up"):
        rewind(at_step_9, config, ranks, state, Spike(step=9, loss=6.0, median=4.0))


CHANGES = {
    "training__steps": 12,
    "training__log_interval_steps": 2,
    "training__save_interval_steps": 4,
    "training__eval_interval_steps": 100,
    "training__sample_tokens": 0,
}


@pytest.fixture(scope="module")
def spiked(make_run):
    """A run whose loss spikes at step 9, to its end, and what it printed."""
    run = make_run(**CHANGES, training__spike=SPIKE)
    run.start(fault="strange text")
    code, output = run.finish()
    assert code == 0, output
    return run, output


def manifest_of(run, step):
    return run.folder / f"checkpoints/step{step:08d}/manifest.json"


def manifest(run, step):
    return json.loads(manifest_of(run, step).read_text(encoding="utf-8"))


@pytest.mark.distributed
def test_a_run_goes_back_for_a_spike_and_goes_on_without_its_samples(spiked):
    run, output = spiked
    first, last = STRANGE_SAMPLES[0], STRANGE_SAMPLES[-1]
    (line,) = [line for line in output.splitlines() if "(training.spike)" in line]
    assert line.startswith("step 9: loss "), line
    assert f"on samples {first} to {last}; going back to {run.folder}/checkpoints/step00000008" in line
    assert line.endswith(f"leaving out samples {first} to 79 (rewind 1 of at most 5).")  # Noticed at the log line of step 10.
    assert [record["step"] for record in run.records() if "train/loss" in record] == list(range(1, 13)), "each step once"
    assert [record for record in run.records() if "train/rewinds" in record][-1]["train/samples_left_out"] == 16
    assert manifest(run, 12)["consumed_samples"] == 96
    left_out = manifest(run, 12)["spikes"]
    assert (left_out["rewinds"], left_out["skipped_samples"]) == (1, [[64, 80]])


@pytest.mark.slow
@pytest.mark.distributed
def test_a_fresh_start_that_leaves_out_the_same_samples_sees_the_same_losses_and_any_topology_leaves_them_out(spiked, make_run):
    run, _ = spiked
    fresh, other = make_run(**CHANGES), make_run(**{**CHANGES, "training__steps": 14}, pipeline__stages=1)  # Without the policy.
    for copy in (fresh, other):
        shutil.copytree(run.folder, copy.folder)
    shutil.rmtree(fresh.folder / "checkpoints/step00000012")
    before = manifest(fresh, 8)
    before["spikes"] |= {"rewinds": 1, "skipped_samples": [[64, 80]]}
    manifest_of(fresh, 8).write_text(json.dumps(before), encoding="utf-8")
    train_many([{"config": str(fresh.config), "world": 2}, {"config": str(other.config), "world": 1}])
    assert fresh.curve() == run.curve()  # To the bit, dropout included.
    assert manifest(fresh, 12)["spikes"]["skipped_samples"] == manifest(other, 14)["spikes"]["skipped_samples"] == [[64, 80]]
    assert manifest(other, 14)["consumed_samples"] == 112
