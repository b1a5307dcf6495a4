"""A test that fails, hangs, is interrupted or killed leaves no process behind, and neither does one that forgets them."""

import os
import signal
import subprocess
import sys

import pytest

from tests.forks import Forked
from tests.processes import LIMIT_SECONDS, command_line, end, is_running, run, start, wait_until

# A process, its child, and an orphan in a session of its own: what a launcher with ranks comes to.
FAMILY = "import subprocess, sys; [subprocess.Popen([sys.executable, '-c', {nap!r}], start_new_session=new) for new in (0, 1)]; {then}"
NAP = "import os, time; open(f'{folder}/{{os.getpid()}}', 'w').close(); time.sleep(3600)"
TEST = """
import os, signal, sys, time
from pathlib import Path
from tests.processes import start
import pytest

def test_it():
    start([sys.executable, "-c", {family!r}])
    while len(list(Path({folder!r}).iterdir())) < {count}:
        time.sleep(0.01)
    {then}
"""


@pytest.fixture
def inner(root, tmp_path):
    """The words of a pytest that runs one test with such a family, and the folder in which each of the family notes its number."""

    def make(then, *options, family_then="time.sleep(3600)"):
        folder = tmp_path / "running"
        folder.mkdir()
        nap = NAP.format(folder=folder)
        count = 2
        if family_then != "pass":
            family_then, count = nap, 3
        family = FAMILY.format(nap=nap, then=family_then)
        file = tmp_path / "test_inner.py"
        file.write_text(TEST.format(family=family, folder=str(folder), then=then, count=count), encoding="utf-8")
        words = [sys.executable, "-m", "pytest", "-q", "-p", "tests.processes", "-c", os.devnull, "--rootdir", str(tmp_path), *options]
        return [*words, str(file)], folder, count

    return make


def numbers(folder):
    return [int(path.name) for path in folder.iterdir()]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("then", "options", "said"),
    [
        ("assert False", [], "assert False"),
        ("os.kill(os.getpid(), signal.SIGALRM)", ["--timeout=3600"], "Timeout"),  # as pytest-timeout's own clock does
        ("sys.modules['tests.processes'].LEAVING_SECONDS = 0.5", [], "the test left processes behind"),
    ],
    ids=["fails", "times out", "forgets"],
)
@pytest.mark.parametrize("family_then", ["stay", "pass"], ids=["with its first process", "orphaned"])
def test_nothing_is_left_of_a_test_that(inner, root, then, options, said, family_then):
    command, folder, count = inner(then, *options, family_then=family_then)
    done = run(command, cwd=root)
    assert done.returncode == 1
    assert said in done.stdout
    assert len(numbers(folder)) == count
    assert not any(map(is_running, numbers(folder)))


@pytest.mark.processes
@pytest.mark.parametrize("shell", [[], ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]], ids=["in front", "in the background"])
def test_nothing_is_left_when_pytest_is_interrupted(inner, root, shell):
    command, folder, count = inner("time.sleep(3600)")
    process = start([*shell, *command], cwd=root)
    wait_until(lambda: len(numbers(folder)) == count, "the start of all")
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(LIMIT_SECONDS) == 2
    assert not any(map(is_running, numbers(folder)))


@pytest.mark.processes
def test_what_was_started_ends_with_a_pytest_that_is_killed(inner, root):
    command, folder, count = inner("time.sleep(3600)")
    process = start(command, cwd=root)
    wait_until(lambda: len(numbers(folder)) == count, "the start of all")
    started = [number for number in numbers(folder) if "Popen" in command_line(number)]
    assert len(started) == 1
    end(process)
    wait_until(lambda: not is_running(started[0]), "the end of what pytest had started")
    # Its children are not bound to it: that is the business of what is tested. This test's own pytest ends them.
    rest = [number for number in numbers(folder) if is_running(number)]
    for number in rest:
        os.kill(number, signal.SIGKILL)
    wait_until(lambda: not any(map(is_running, rest)), "the end of the rest")


@pytest.mark.processes
def test_what_is_forked_has_words_environment_output_and_an_end_of_its_own():
    environment = {**os.environ, "PYTHONUSERBASE": "/here"}
    one = Forked("site", "--user-base", env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert os.getpgid(one.pid) == one.pid
    other = Forked("json.tool", "nowhere", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert one.communicate() == ("/here\n", "")
    assert "nowhere" in other.communicate()[0]
    assert other.returncode == 2
