"""Processes that tests start, and a plugin for pytest that leaves none of them behind, however a test ends.

- `start` and `run`: in a session of their own, and killed by the kernel when pytest is killed.
- After each test, whatever has come up below pytest since its beginning is ended, orphans too. Left behind by a test that passed,
  it is a failure.
- `LIMIT_SECONDS` is the one limit for anything that is waited for. It only ends what hangs: no machine that is just slow reaches it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from training.launch.process_tree import bound, command_of, parent_of, stat_of

LIMIT_SECONDS = 900
# For processes that are just about to leave when their test ends, on a machine that may be slow.
LEAVING_SECONDS = 60
# Python's own helpers, which live as long as the process that uses `multiprocessing` (or `multiprocess`, its copy in datatrove).
HELPERS = ("resource_tracker import main", "forkserver import main")
PR_SET_CHILD_SUBREAPER = 36
BURY_SECONDS = 0.2
# Processes of our own that outlive the test which started them; a fixture of a wider scope ends them.
KEPT: set[int] = set()
_REPORTS = pytest.StashKey[dict[str, pytest.TestReport]]()


def start(command: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
    """Like `subprocess.Popen`. The process leads its own group: `os.killpg(process.pid, ...)` reaches all of it."""
    return subprocess.Popen(bound([str(word) for word in command]), start_new_session=True, **options)


def run(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[Any]:
    """Wait for the command's end and give its exit code and, as text, what it wrote."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    with start(command, **options) as process:
        try:
            output, errors = process.communicate(timeout=LIMIT_SECONDS)
        except BaseException:
            end(process)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def end(process: subprocess.Popen[Any]) -> None:
    """End the process and its group now."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_running(process: int) -> bool:
    """False for one that has ended, waited for or not."""
    return parent_of(process) is not None


def have_ended(processes: Sequence[int]) -> bool:
    """True once none of them runs."""
    return not any(map(is_running, processes))


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll fast: what is waited for can be over in milliseconds."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not in {LIMIT_SECONDS} s: {what}"
        time.sleep(0.002)


def descendants(process: int) -> list[int]:
    """All running processes below this one."""
    found: list[int] = []
    for child in _children(process):
        found += [child, *descendants(child)]
    return [child for child in found if is_running(child)]


def _children(process: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError):  # It has gone in between.
        for task in Path(f"/proc/{process}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, task.read_text(encoding="utf-8").split())
    return found


def command_line(process: int) -> str:
    """Words of the command, joined; empty if the process has gone."""
    return " ".join(command_of(process)).strip()


def end_all(processes: Sequence[int]) -> None:
    """Kill them and wait until none runs."""
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    wait_until(lambda: have_ended(processes), "the end of killed processes")


def pytest_configure() -> None:
    """Become the parent of orphans below, or they could not be found; and be a good one. With one thread, beside others like this.

    A script that starts pytest in the background has it ignore SIGINT, and so would all that tests start: it is heard again.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    threading.Thread(target=_bury_orphans, name="orphans", daemon=True).start()


def _bury_orphans() -> None:
    """Wait for orphans that have ended, as init would: DeepSpeed's launcher gives those that stay half a minute each time it ends ranks.

    They are told by their session: children that tests started are in pytest's own or lead one, and wait for whoever started them.
    """
    while True:
        for child in _children(os.getpid()):
            with contextlib.suppress(OSError, ValueError):  # Gone in between.
                state, _, _, session = stat_of(child)[:4]
                if state == "Z" and int(session) not in (os.getsid(0), child):
                    os.waitpid(child, os.WNOHANG)
        time.sleep(BURY_SECONDS)


def pytest_unconfigure() -> None:
    """Whatever fixtures of a wider scope have left."""
    end_all(descendants(os.getpid()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the fixture below know how the test ended."""
    report = yield
    item.stash.setdefault(_REPORTS, {})[report.when] = report
    return report


@pytest.fixture(autouse=True)
def _no_process_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    before = set(descendants(os.getpid()))
    yield

    def left() -> list[int]:
        new = [process for process in descendants(os.getpid()) if process not in before]
        return [process for process in new if not is_helper(process) and not is_killed(process)]

    call = request.node.stash.get(_REPORTS, {}).get("call")
    if call is None or not call.passed:
        end_all(left())
        return
    deadline = time.monotonic() + LEAVING_SECONDS
    while left() and time.monotonic() < deadline:
        time.sleep(0.05)
    if remaining := left():
        said = [f"{process} ({stat_of(process)[0]}): {command_line(process)}" for process in remaining if is_running(process)]
        end_all(remaining)
        pytest.fail("the test left processes behind: " + "; ".join(said))


def is_killed(process: int) -> bool:
    """True for one that a kill has reached and the kernel has yet to end: it waits for a disk, which no signal interrupts."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    pending = re.findall(r"^S(?:ig|hd)Pnd:\s*(\w+)", status, re.MULTILINE)
    return any(int(mask, 16) >> (signal.SIGKILL - 1) & 1 for mask in pending)


def is_helper(process: int) -> bool:
    """True for Python's own and those that are kept, and for what has just gone."""
    command = command_line(process)
    return process in KEPT or not command or any(name in command for name in HELPERS)
