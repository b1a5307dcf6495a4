"""What a supervisor remembers of an attempt: why it ended, and where it began to."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from tests import processes
from training.supervision import attempt
from training.supervision.attempt import Attempt, cause_of

pytestmark = pytest.mark.processes


@pytest.mark.parametrize(
    ("code", "lines", "cause"),
    [
        (137, [], "exit code 137 (SIGKILL)"),
        (
            75,
            ["rank 1: no progress for 31 s (training.watchdog_seconds = 30)"],
            "rank 1: no progress for 31 s (training.watchdog_seconds = 30)",
        ),
        (
            1,
            ["beta: rank 3: RuntimeError: device lost", "alpha: [2026-11-25 10:00:00] [INFO]", ""],
            "beta: rank 3: RuntimeError: device lost",
        ),
        (
            75,
            ["alpha: step 3/8 | loss 5.1 | slow: replica 0 (rank 0 1.6x)", "beta: rank 3: no progress for 31 s (...)"],
            "beta: rank 3: no progress for 31 s (...)",
        ),
        (
            127,
            ["beta: bash: line 1: .venv/bin/python3: No such file or directory"],
            "beta: bash: line 1: .venv/bin/python3: No such file or directory",
        ),
        (1, ["alpha: step 3/8 | loss 5.1 | slow: replica 0 (rank 0 1.6x)", "pdsh@alpha: beta: ssh exited with exit code 1"], "exit code 1"),
    ],
)
def test_the_cause_is_what_a_rank_said_or_the_exit_code(code, lines, cause):
    assert cause_of(code, lines) == cause


def test_the_output_is_passed_on_and_the_first_host_to_end_is_noted(capfdbinary):
    lines = ["alpha: step 1", "pdsh@alpha: beta: ssh exited with exit code 1", "pdsh@alpha: alpha: ssh exited with exit code 1"]
    ended = Attempt([sys.executable, "-c", f"print({chr(10).join(lines)!r}); raise SystemExit(9)"], {}).wait()
    assert (ended.code, ended.first_host) == (9, "beta")
    assert capfdbinary.readouterr().out.decode().splitlines() == lines


def test_after_a_hang_no_host_is_said_to_have_ended_first_as_all_watchdogs_end_it_at_once(capfdbinary):
    lines = ["beta: rank 2: no progress for 31 s", "pdsh@alpha: alpha: ssh exited with exit code 75"]
    ended = Attempt([sys.executable, "-c", f"print({chr(10).join(lines)!r}); raise SystemExit(75)"], {}).wait()
    assert (ended.code, ended.first_host, ended.cause) == (75, None, lines[0])
    assert b"exit code 75" in capfdbinary.readouterr().out


def says(*lines: str, seconds: float = 0, code: int = 9, stop_file: Path | None = None) -> Attempt:
    """A command that prints these lines, goes on for a while and ends."""
    program = f"import time; print({chr(10).join(lines)!r}, flush=True); time.sleep({seconds}); raise SystemExit({code})"
    return Attempt([sys.executable, "-c", program], {}, stop_file)


def test_a_host_that_ends_before_the_ranks_have_met_ends_the_start_soon(monkeypatch, capfdbinary):
    monkeypatch.setattr(attempt, "LAST_WORDS_SECONDS", 0.2)
    started = time.monotonic()
    noise = "fd00::2: [2026-11-28 10:00:00] [ERROR] [launch.py:325:sigkill_handler] exits with return code = 127"
    lost = "pdsh@login: fd00::2: ssh exited with exit code 127"
    ended = says("fd00::2: no such library", noise, "alpha: waiting", lost, seconds=300).wait()
    assert time.monotonic() - started < 60, "and not the 300 s for which ranks that are only late are waited for"
    assert (ended.code, ended.first_host) == (127, "fd00::2")
    assert ended.cause == "host fd00::2 took no part in the start: no such library"


def test_a_host_that_ends_later_or_during_a_stop_does_not_end_the_others_which_may_be_saving(monkeypatch, capfdbinary):
    monkeypatch.setattr(attempt, "LAST_WORDS_SECONDS", 0.2)
    lost = "pdsh@login: beta: ssh exited with exit code 1"
    assert says("alpha: pipeline 0: ranks 0-1 on alpha", lost, seconds=2).wait().code == 9
    assert says("pdsh@login: beta: ssh exited with exit code 143", seconds=2).wait().code == 9
    stopped = says(lost, seconds=2)
    stopped.signal_number = 15
    assert stopped.wait().code == 9


RUNNING = "echo 'alpha: pipeline 0: ranks 0-1 on alpha'; for i in $(seq 600); do [ -e {file} ] && exit 7; sleep 0.1; done"


def ask_when_met(running):
    def ask():
        processes.wait_until(lambda: running.have_met, "the ranks to meet")
        running.ask_to_stop(signal.SIGINT)

    threading.Thread(target=ask).start()


@pytest.mark.parametrize(("folder", "code"), [(".", 7), ("not there", 128 + signal.SIGTERM)])
def test_ranks_that_have_met_are_asked_to_stop_by_a_file_and_otherwise_by_a_signal(tmp_path, capfdbinary, folder, code):
    file = tmp_path / folder / "STOP"
    running = Attempt(["sh", "-c", RUNNING.format(file=shlex.quote(str(file)))], dict(os.environ), file)
    ask_when_met(running)
    assert running.wait().code == code
    assert not file.exists(), "the next start would stop as well"


def test_ranks_that_do_not_read_the_file_are_asked_by_a_signal_when_their_grace_is_over(tmp_path, capfdbinary):
    running = Attempt(["sh", "-c", RUNNING.format(file=tmp_path / "another")], dict(os.environ), tmp_path / "STOP", grace_seconds=0.5)
    ask_when_met(running)
    assert running.wait().code == 128 + signal.SIGTERM
    assert not (tmp_path / "STOP").exists()


def test_a_file_that_is_made_when_all_is_over_does_not_stay(tmp_path, capfdbinary):
    over = says("alpha: pipeline 0: ranks 0-1 on alpha", stop_file=tmp_path / "STOP")
    over.wait()
    over.ask_to_stop(signal.SIGINT)
    processes.wait_until(lambda: b"asked to save" in capfdbinary.readouterr().err, "the thread that makes it")
    processes.wait_until(lambda: not (tmp_path / "STOP").exists(), "its end")


def test_an_attempt_ends_with_its_supervisor_however_that_ends(root):
    program = "from training.supervision.attempt import Attempt; Attempt(['sleep', '1000.25'], {'PATH': '/usr/bin:/bin'}).wait()"
    supervisor = processes.start([sys.executable, "-c", program], cwd=root)
    processes.wait_until(lambda: any("1000.25" in processes.command_line(pid) for pid in processes.descendants(supervisor.pid)), "sleep")
    (sleep,) = [pid for pid in processes.descendants(supervisor.pid) if "1000.25" in processes.command_line(pid)]
    supervisor.kill()
    supervisor.wait()
    processes.wait_until(lambda: not processes.is_running(sleep), "the end of sleep")
