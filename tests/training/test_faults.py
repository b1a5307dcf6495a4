"""A hang ends by itself, and says where everybody stood."""

import os
import signal

import pytest

from tests.processes import is_running


@pytest.mark.distributed
def test_a_rank_whose_peer_no_longer_answers_prints_its_stacks_and_leaves(make_run):
    run = make_run(training__steps=100000, training__watchdog_seconds=8)
    run.start()
    run.wait_for(lambda: len(run.curve()) >= 3, "step 3")
    waiting, silent = run.rank_process(0), run.rank_process(1)
    os.kill(silent, signal.SIGSTOP)
    # The launcher ends the silent rank too, but gives it 30 s, which a test need not wait for.
    run.wait_for(lambda: not is_running(waiting), "the end of the waiting rank")
    os.kill(silent, signal.SIGKILL)
    code, output = run.finish()
    assert code != 0  # 75, or the killed rank's, whichever the launcher sees first.
    assert "rank 0: no progress for" in output
    assert "Start again to resume from the last checkpoint." in output
    assert "train_batch" in output, "the stack shows what the rank was waiting in"
