"""A run that is asked to stop, by a signal, by a file or by its own time, saves, leaves, and goes on when it is started again."""

from __future__ import annotations

import os
import signal

import pytest

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def run(make_run):
    return make_run(training__steps=1_000_000, training__save_interval_steps=1_000_000, training__eval_interval_steps=1_000_000)


def steps_of(run):
    return {record["step"] for record in run.records()}


def wait_for_a_step_after(run, before):
    run.wait_for(lambda: bool(steps_of(run) - before), "a step of this start")


def ended_with_a_checkpoint(run, code, output):
    assert len(run.tags()) == 1 or int(run.tags()[-1].removeprefix("step")) == max(steps_of(run)), output
    assert "which is saved; the same command goes on from there" in output
    return code


def test_sigusr1_to_one_rank_stops_all_with_a_checkpoint(run):
    run.start()
    wait_for_a_step_after(run, set())
    os.kill(run.rank_process(1), signal.SIGUSR1)
    code = ended_with_a_checkpoint(run, *run.finish())
    assert code in (128 + signal.SIGUSR1, 128 + signal.SIGTERM)  # The rank that had it, or its peers, whichever the launcher saw last.


def test_a_stop_file_is_noticed_taken_away_and_does_not_stop_the_next_start(run):
    before = steps_of(run)
    run.start()
    wait_for_a_step_after(run, before)
    (run.folder / "STOP").touch()
    code, output = run.finish()
    assert ended_with_a_checkpoint(run, code, output) == 128 + signal.SIGTERM
    assert "STOP was there: stopping with a checkpoint" in output
    assert not (run.folder / "STOP").exists()


def test_a_run_whose_time_is_nearly_over_stops_by_itself(run):
    before = steps_of(run)
    # Its start alone takes longer, so the first step is also the last but one.
    run.start("training.stop_after_minutes=0.05")
    code, output = run.finish()
    assert ended_with_a_checkpoint(run, code, output) == 128 + signal.SIGTERM
    assert "training.stop_after_minutes = 0.05 are nearly over" in output
    assert 1 <= len(steps_of(run) - before) <= 3
