"""What a process does when the one that started it ends, and how long a rank waits for a save."""

import os
import shutil
import signal
import sys
import time

import pytest

from tests import processes
from training.launch.process_tree import STARTER, WATCH_SECONDS, bound, children_of, parent_of

pytestmark = pytest.mark.processes

NAP = "import time; print(1, flush=True); time.sleep(3600)"
# A rank as far as its launcher is concerned. It says what it is told, by a plain write: a print may come in the midst of another.
RANK = """
import os, signal, time
from training.launch.process_tree import watch_launcher
signal.signal(signal.SIGTERM, lambda number, frame: os.write(1, b"SIGTERM\\n"))
watch_launcher(os.environ)
print(os.getpid(), flush=True)
while True:
    time.sleep(3600)
"""
# A process that starts another and waits for it.
CHAIN = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"


def chain(*programs, root, names=None, **environment):
    """Start programs, each the child of the one before, and return (first process, id of the last)."""
    *outer, last = programs
    words = [sys.executable, "-c", last]
    for program, name in zip(reversed(outer), reversed(names or [None] * len(outer)), strict=True):
        words = [sys.executable, *([name] if name else ["-c", program]), *words]
    first = processes.start(words, cwd=root, env={**os.environ, "PYTHONPATH": str(root), **environment}, stdout=-1, text=True)
    return first, int(first.stdout.readline())


def test_a_bound_process_is_killed_with_its_parent_and_one_whose_parent_is_gone_does_not_start(root):
    start = f"import subprocess as s, sys; from training.launch.process_tree import bound; s.run(bound([sys.executable, '-c', {NAP!r}]))"
    parent = processes.start([sys.executable, "-c", start], cwd=root, stdout=-1, text=True)
    parent.stdout.readline()
    (child,) = children_of(parent.pid)
    assert parent_of(child) == parent.pid
    os.kill(parent.pid, signal.SIGKILL)
    processes.wait_until(lambda: not processes.is_running(child), "the end of the child")
    parent.wait()
    parent.stdout.close()

    orphan = bound([sys.executable, "-c", "print('ran')"])
    orphan[4] = str(parent.pid)
    done = processes.run([sys.executable, "-c", f"import subprocess, sys; sys.exit(subprocess.call({orphan!r}))"])
    assert (done.returncode, done.stdout) == (1, "")


def test_a_rank_leaves_when_its_launcher_is_killed(root):
    launcher, rank = chain(CHAIN, RANK, root=root)
    os.kill(launcher.pid, signal.SIGKILL)
    processes.wait_until(lambda: not processes.is_running(rank), "the end of the rank")
    launcher.wait()
    launcher.stdout.close()


def test_a_rank_of_our_own_start_leaves_even_while_an_import_lets_no_other_thread_run(root):
    held = "import ctypes, os; print(os.getpid(), flush=True); ctypes.PyDLL(None).sleep(3600)"
    rank_that_imports = RANK.replace("print(os.getpid(), flush=True)", held)
    starter = CHAIN.replace("sys.argv[1:]", f"sys.argv[1:], env=dict(os.environ, {STARTER}=str(os.getpid()))").replace(
        "import ", "import os, "
    )
    first, rank = chain(starter, CHAIN, rank_that_imports, root=root)
    launcher = parent_of(rank)
    assert launcher
    os.kill(launcher, signal.SIGKILL)
    processes.wait_until(lambda: not processes.is_running(rank), "the end of the rank")
    first.wait()
    first.stdout.close()


def test_a_rank_that_comes_up_after_its_starter_has_ended_leaves(root):
    rank = processes.run([sys.executable, "-c", RANK], cwd=root, env={**os.environ, "PYTHONPATH": str(root), STARTER: "1"})
    assert (rank.returncode, rank.stdout) == (1, "")
    assert rank.stderr == "rank ?: the process that started it has ended; leaving, without a save.\n"


def test_a_rank_hears_that_the_command_deepspeed_has_ended_but_not_of_other_ancestors(root, tmp_path):
    for name, heard in (("deepspeed", True), ("anything", False)):
        script = tmp_path / name
        script.write_text(CHAIN, encoding="utf-8")
        runner, rank = chain(CHAIN, CHAIN, RANK, root=root, names=[str(script), None])
        os.kill(runner.pid, signal.SIGKILL)
        runner.wait()
        if heard:
            assert runner.stdout.readline() == "SIGTERM\n"
        assert still_there(rank)
        parent = parent_of(rank)
        assert parent
        os.kill(parent, signal.SIGKILL)
        assert runner.stdout.readline() == "", "nothing more is said to the end"
        runner.stdout.close()


def test_a_rank_that_a_person_starts_from_a_shell_does_not_end_with_the_shell(root):
    shell = processes.start(
        ["bash", "-c", '"$@"; true', "bash", sys.executable, "-c", RANK],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=-1,
        text=True,
    )
    rank = int(shell.stdout.readline())
    os.kill(shell.pid, signal.SIGKILL)
    shell.wait()
    assert still_there(rank)
    os.kill(rank, signal.SIGKILL)
    shell.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_while_the_environment_is_made_ends_pip_as_well(root, tmp_path, number):
    (tmp_path / "training/launch").mkdir(parents=True)
    for name in ("run_pretrain.sh", "training/make_venv.py", "training/launch/process_tree.py"):
        shutil.copy(root / name, tmp_path / name)
    (tmp_path / "requirements.txt").write_text("anything\n", encoding="utf-8")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    # Has pip, which then takes its time.
    python.write_text('#!/bin/sh\n[ "$1" = -c ] || { echo $$; sleep 3600; }\n', encoding="utf-8")
    python.chmod(0o755)
    process = processes.start(
        [tmp_path / "run_pretrain.sh"], cwd=tmp_path, env={**os.environ, "PYTHON": sys.executable}, stdout=-1, stderr=-2, text=True
    )
    assert "installing requirements.txt" in process.stdout.readline()
    pip = int(process.stdout.readline())
    os.kill(process.pid, number)
    assert process.wait() == (-number if number == signal.SIGKILL else 128 + number)
    processes.wait_until(lambda: not processes.is_running(pip), "the end of pip")
    if number == signal.SIGKILL:
        os.killpg(pip, signal.SIGKILL)  # What pip itself had started: nobody is left to end that.
    assert "Traceback" not in process.stdout.read()
    process.stdout.close()


def still_there(rank):
    """After three looks of the thread that watches."""
    time.sleep(3 * WATCH_SECONDS)
    return processes.is_running(rank)
