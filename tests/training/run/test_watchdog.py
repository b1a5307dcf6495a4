"""A hang ends by itself and says where everybody stood; a stop that cannot be had ends too."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import end, is_running, start, wait_until
from training.run.signals import SAME_PRESS_SECONDS


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


def state_of(run):
    """The state of rank 1, as the kernel names it; nothing before there is one."""
    with contextlib.suppress(IndexError, OSError):
        return Path(f"/proc/{run.rank_process(1)}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


@pytest.mark.slow
@pytest.mark.distributed
def test_a_peer_that_is_lost_while_the_process_group_forms_is_not_waited_for_for_ever(make_run):
    run = make_run(training__watchdog_seconds=8)
    run.start(fault="stop before group")
    run.wait_for(lambda: state_of(run) == "T", "the stop of rank 1")
    waiting, silent = run.rank_process(0), run.rank_process(1)
    run.wait_for(lambda: not is_running(waiting), "the end of the waiting rank")
    os.kill(silent, signal.SIGKILL)
    code, output = run.finish()
    assert code == 75
    assert "rank 0: no progress for" in output


# A rank whose main thread waits inside C code and does not come back to Python, as in a collective whose peer has died.
WAITING = """
import ctypes, logging, sys
import torch
from training.run.stop_request import StopRequest
from training.run.watchdog import Heartbeat

logging.basicConfig(format="%(message)s")
heartbeat = Heartbeat(limit_seconds=100_000)
with heartbeat.phase("step"):
    pass
StopRequest(heartbeat, torch.device("cpu"), grace_seconds=float(sys.argv[2]))
mutex = ctypes.create_string_buffer(64)
with heartbeat.phase(sys.argv[1]):
    print("waiting", flush=True)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


@pytest.fixture
def waiting(root):
    """Start a rank that waits in a phase; returns the process."""
    environment = {**os.environ, "PYTHONPATH": str(root), "RANK": "0", "OMP_NUM_THREADS": "1"}
    started = []

    def begin(phase, grace_seconds):
        words = [sys.executable, "-c", WAITING, phase, str(grace_seconds)]
        started.append(start(words, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        wait_until(lambda: "waiting" in started[-1].stdout.readline(), "the phase")
        return started[-1]

    yield begin
    for process in started:
        end(process)
        process.stdout.close()


@pytest.mark.distributed
def test_a_stop_gives_a_phase_that_is_new_the_whole_grace_and_one_that_is_known_what_it_needed_before(waiting):
    new, known = waiting("save", 12), waiting("step", 100_000)
    for process in (new, known):
        os.kill(process.pid, signal.SIGTERM)
    assert new.wait() == known.wait() == 143
    assert "training.stop_grace_seconds = 12 are over during the save; leaving without a save." in (said := new.stdout.read())
    assert "SIGTERM: waiting for: save (the first), step (longest so far 0.0 s); at most 12 s more" in said
    assert "signal 15 and no progress for 8 s; leaving without a save." in known.stdout.read()


@pytest.mark.distributed
def test_sigterm_is_repeated_by_launchers_and_a_second_ctrl_c_is_meant(waiting):
    process = waiting("save", 100_000)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGINT)  # One Ctrl-C, from the terminal and from a launcher.
    time.sleep(2 * SAME_PRESS_SECONDS)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(2 * SAME_PRESS_SECONDS)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 130
    assert "Ctrl-C again; leaving without a save." in process.stdout.read()
