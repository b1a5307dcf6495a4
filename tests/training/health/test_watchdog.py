"""A hang ends by itself and says where everybody stood; a stop that cannot be had ends too."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from ds_configs.commands import SAME_PRESS_SECONDS
from tests.processes import end, is_running, start, wait_until
from training.launch.process_tree import stat_of

pytestmark = pytest.mark.processes


@pytest.mark.distributed
@pytest.mark.alone
def test_a_rank_whose_peer_no_longer_answers_prints_its_stacks_and_leaves(make_run):
    run = make_run(training__steps=100000, training__watchdog_seconds=8)
    run.start()
    run.wait_for(lambda: len(run.curve()) >= 3, "step 3")
    waiting, silent = run.rank_process(0), run.rank_process(1)
    os.kill(silent, signal.SIGSTOP)
    run.wait_for(lambda: not is_running(waiting), "the end of the waiting rank")
    before = time.monotonic()
    code, output = run.finish()
    assert time.monotonic() - before < 20, "DeepSpeed's launcher would give the stopped rank 30 s"
    assert not is_running(silent)
    assert code != 0  # 75, or the killed rank's, whichever the launcher sees first.
    assert "rank 0: no progress for" in output
    assert "rank 1: its watchdog has not run for" in output
    assert f"Killing it (process {silent})." in output
    assert "Start again to resume from the last checkpoint." in output
    assert "train_batch" in output, "the stack shows what the rank was waiting in"


# A rank with a main thread that beats until it is to hold Python's lock inside C code.
BESIDE = """
import ctypes, logging, sys, time
from training.health.watchdog import Heartbeat

logging.basicConfig(format="%(message)s")
heartbeat = Heartbeat(limit_seconds=float(sys.argv[1]))
print(heartbeat._outside.pid, flush=True)
for line in sys.stdin:
    heartbeat.beat()
    if line == "hold\\n":
        ctypes.PyDLL(None).sleep(1000)
"""


@pytest.fixture
def beside(root):
    """Start a rank with a limit of so many seconds; returns it and the process beside it."""
    environment = {**os.environ, "PYTHONPATH": str(root), "RANK": "7"}
    started = []

    def begin(limit_seconds):
        words = [sys.executable, "-c", BESIDE, str(limit_seconds)]
        process = start(
            words, cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process, int(process.stdout.readline())

    yield begin
    for process in started:
        end(process)
        process.stdin.close()
        process.stdout.close()


def test_a_rank_that_holds_pythons_lock_is_killed_by_the_process_beside_it(beside):
    rank, outside = beside(1)
    print("hold", file=rank.stdin, flush=True)
    assert rank.wait(timeout=60) == -signal.SIGKILL
    assert "rank 7: its watchdog has not run for" in rank.stdout.read()
    wait_until(lambda: not is_running(outside), "the end of the process beside it")


def test_a_rank_goes_on_without_the_process_beside_it_and_says_so_once(beside):
    rank, outside = beside(4)
    os.kill(outside, signal.SIGKILL)
    for _ in range(6):
        print("beat", file=rank.stdin, flush=True)
        time.sleep(1)
    assert rank.poll() is None
    rank.stdin.close()
    assert rank.wait(timeout=60) == 0
    assert rank.stdout.read().count("rank 7: the process that watches its watchdog was ended; going on without") == 1


def test_a_rank_that_was_suspended_with_the_whole_job_goes_on(beside):
    rank, outside = beside(8)
    for process in (rank.pid, outside):
        os.kill(process, signal.SIGSTOP)
    time.sleep(16)
    for process in (outside, rank.pid):
        os.kill(process, signal.SIGCONT)
    time.sleep(4)
    assert rank.poll() is None
    os.kill(rank.pid, signal.SIGKILL)
    assert not rank.stdout.read()
    wait_until(lambda: not is_running(outside), "the end of the process beside it")


def state_of(run):
    """The state of rank 1, as the kernel names it; nothing before there is one."""
    with contextlib.suppress(IndexError, OSError):
        return stat_of(run.rank_process(1))[0]


@pytest.mark.slow
@pytest.mark.distributed
def test_a_peer_that_is_lost_while_the_process_group_forms_is_not_waited_for_for_ever(make_run):
    run = make_run(training__watchdog_seconds=8)
    run.start(fault="stop before group")
    run.wait_for(lambda: state_of(run) == "T", "the stop of rank 1")
    code, output = run.finish()
    assert code == 75
    assert "rank 0: no progress for" in output
    assert "rank 1: its watchdog has not run for" in output


# A rank whose main thread waits inside C code and does not come back to Python, as in a collective whose peer has died.
WAITING = """
import ctypes, logging, sys
import torch
from training.run.stop_request import StopRequest
from training.health.watchdog import Heartbeat

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
@pytest.mark.alone
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
