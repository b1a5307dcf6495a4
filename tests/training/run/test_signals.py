"""Signals as people send them, and kills: what is asked to stop saves and leaves, and whatever dies takes all of the run with it."""

import functools
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.processes import command_line, descendants, have_ended, run, wait_until
from training.launch.local import free_port
from training.launch.process_tree import children_of

pytestmark = pytest.mark.distributed

ENDLESS = {"training__steps": 1_000_000, "training__eval_interval_steps": 1_000_000}


@pytest.fixture
def endless(make_run):
    return make_run(**ENDLESS, training__save_interval_steps=1_000_000)


def ranks_of(tiny):
    """The ranks of a person's start, or none if there are none yet."""
    (launcher,) = children_of(tiny.process.pid) or (None,)
    return children_of(launcher) if launcher else []


def test_a_stop_waits_for_a_long_first_step_and_is_saved_and_a_second_start_is_refused_meanwhile(make_run, root):
    # A step of seconds, so that the first one is under way when its ranks are held up.
    tiny = make_run(**ENDLESS, training__save_interval_steps=1_000_000, train_batch_size=800)
    tiny.start_as_a_person_does()
    tiny.wait_for(lambda: (tiny.folder / "tensorboard").exists(), "the first step")
    held_up = ranks_of(tiny)[1]
    os.kill(held_up, signal.SIGSTOP)
    assert not tiny.curve()
    os.kill(tiny.process.pid, signal.SIGINT)  # To this process alone, as an IDE or a notebook does.

    second = run(["./run_pretrain.sh", tiny.config, "training.steps=3"], cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert second.returncode == 2
    (line,) = second.stderr.splitlines()
    assert line.startswith(f"{tiny.folder}: another start of this run is going on: process ")
    assert "-> " not in second.stderr, "no ranks were launched"

    time.sleep(10)  # Longer than a rank waits for a step when the steps before it took milliseconds.
    os.kill(held_up, signal.SIGCONT)
    code, output = tiny.finish()
    assert code == 130
    assert "SIGINT: asking 2 ranks to stop." in output
    assert "waiting for: step (the first), save (the first); at most 300 s more (training.stop_grace_seconds)" in output
    assert "which is saved; the same command goes on from there." in output
    assert "Traceback" not in output
    step = max(tiny.curve())
    assert tiny.tags() == [f"step{step:08d}"]
    assert f"from step {step} of {step + 1}" in tiny.run(f"training.steps={step + 1}")


def test_a_second_ctrl_c_ends_at_once(endless):
    endless.start_as_a_person_does()
    endless.wait_for(lambda: len(endless.curve()) >= 3, "step 3")
    all_of_it = descendants(endless.process.pid)
    os.kill(ranks_of(endless)[1], signal.SIGSTOP)  # So that the first one cannot have its way.
    os.kill(endless.process.pid, signal.SIGINT)
    time.sleep(1)
    assert endless.process.poll() is None
    os.kill(endless.process.pid, signal.SIGINT)
    code, output = endless.finish()
    assert code == 130
    assert "Ctrl-C again: ending at once, without a save." in output
    assert not endless.tags()
    wait_until(lambda: have_ended(all_of_it), "the end of all its processes")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_there_is_anything_to_save_ends_the_start(endless, number, code):
    endless.start_as_a_person_does()
    endless.wait_for(lambda: len(ranks_of(endless)) == 2, "two ranks")
    all_of_it = descendants(endless.process.pid)
    os.kill(endless.process.pid, number)
    ended_with, output = endless.finish()
    assert ended_with == code
    assert "Traceback" not in output
    assert not endless.curve()
    wait_until(lambda: have_ended(all_of_it), "the end of all its processes")


def test_ranks_save_and_leave_when_the_command_deepspeed_is_killed(endless):
    deepspeed = [sys.executable, str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_addr", "127.0.0.1"]
    command = [*deepspeed, "--master_port", str(free_port()), "run_pretrain.sh", str(endless.config)]
    endless.start_command(command, OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu")
    endless.wait_for(lambda: len(endless.curve()) >= 3, "step 3")
    all_of_it = descendants(endless.process.pid)
    assert len(all_of_it) >= 3
    os.kill(endless.process.pid, signal.SIGKILL)
    wait_until(lambda: have_ended(all_of_it), "the end of launcher and ranks")
    assert len(endless.tags()) == 1


@pytest.mark.parametrize(
    ("num_kills", "in_background"),
    [(3, True), pytest.param(30, True, marks=pytest.mark.slow), pytest.param(30, False, marks=pytest.mark.slow)],
)
def test_nothing_is_left_of_a_run_killed_at_random_and_the_next_start_goes_on(make_run, num_kills, in_background):
    # A schedule without an end, so that some steps are a piece of more.
    rate = {"scheduler__type": "WarmupLR", "scheduler__params": {"warmup_num_steps": 3, "warmup_type": "linear", "warmup_max_lr": 0.01}}
    whole = make_run(**rate, training__eval_interval_steps=1000, training__save_interval_steps=1000)
    tiny = make_run(**rate, training__eval_interval_steps=1000, training__save_interval_steps=2, training__async_save=in_background)
    draw = random.Random(num_kills)
    length = 8
    for _ in range(num_kills):
        before = max(tiny.curve(), default=0)
        tiny.start_as_a_person_does("training.steps=10000")
        process = tiny.process.pid
        if draw.random() < 0.7:
            tiny.wait_for(lambda before=before: max(tiny.curve(), default=0) >= before + 1, "a step")
        time.sleep(draw.uniform(0, 2))
        all_of_it = descendants(process)
        # Itself, the launcher, a rank; not what watches a rank's watchdog, without which the run goes on.
        victim = draw.choice([one for one in (process, *all_of_it) if "outside_watchdog" not in command_line(one)])
        os.kill(victim, signal.SIGKILL)
        wait_until(functools.partial(have_ended, all_of_it), "the end of all that belongs to the run")
        code, output = tiny.finish()
        assert code != 0, output
        assert "another start of this run" not in output
        length = max(length, *tiny.curve())
    assert f"of {length}" in tiny.run(f"training.steps={length}")
    whole.run(f"training.steps={length}")
    assert tiny.curve() == whole.curve()
