"""Keep a run going without a person: start it, and start it again from its newest good checkpoint when it fails.

    .venv/bin/python -m training.supervise -- .venv/bin/deepspeed --hostfile hostfiles/32nodes run_pretrain.sh CONFIG
    .venv/bin/python -m training.supervise -- ./run_pretrain.sh CONFIG

Works around `deepspeed`, `mpiexec`, `srun`, and `./run_pretrain.sh` on one machine. With a hostfile, hosts that do not answer or that
fail again and again are left out; spare hosts (`# spare: HOST slots=N` in the hostfile) take their place, otherwise fewer replicas go on
with the same global batch. What happened is written to `runs/<name>/supervisor/log.jsonl`.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_configs.commands import HANDLED, command, leaving, listen, say
from training.pretrain import EXIT_USER_ERROR
from training.run_folder.lock import hold
from training.run_folder.monitors import AppendedFile
from training.run_folder.progress import STOP_FILE, newest_step, remove_unused
from training.supervision.attempt import Attempt, Ended, take_away
from training.supervision.hosts import Host, answering, choose, on_each
from training.supervision.job import Job
from training.supervision.leftovers import end

FOLDER = "supervisor"
# Without it ssh waits for ever for a host whose link is cut, and so do pdsh and the command above it.
KEEPALIVE = {"PDSH_SSH_ARGS_APPEND": "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"}


@command()
def main(arguments: Sequence[str]) -> int:
    """Returns the exit code of the last attempt; 2 for a mistake."""
    options, words = parse_command(arguments)
    listen(leaving("stopped before anything was started."))
    if shutil.which(words[0]) is None:
        raise ValueError(f"{words[0]}: no such command here, or it may not be run. Write it as it is typed without a supervisor.")
    supervisor = Supervisor(Job(words), options)
    hold(supervisor.folder)  # Until this process ends.
    try:
        return supervisor.run()
    finally:
        remove_unused(supervisor.folder.parent, FOLDER)


def parse_command(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and the command behind `--`."""
    parser = argparse.ArgumentParser(
        prog="python -m training.supervise", usage="%(prog)s [options] -- COMMAND", description="Start COMMAND again when it fails."
    )
    parser.add_argument("--tries", type=int, default=3, help="failures in a row without a new checkpoint that are a crash loop (3)")
    parser.add_argument("--delay-seconds", type=float, default=10, help="before the first restart; doubled while nothing is gained (10)")
    parser.add_argument("--longest-delay-seconds", type=float, default=600, help="at most before one (600)")
    parser.add_argument("--host-failures", type=int, default=2, help="failures in a row that began on a host before it is left out (2)")
    words = list(arguments)
    cut = words.index("--") if "--" in words else len(words)
    options, behind = parser.parse_args(words[:cut]), words[cut + 1 :]
    if not behind:
        parser.error("no command. Put it behind --, e.g.  -- ./run_pretrain.sh CONFIG")
    if options.tries < 1 or options.host_failures < 1 or min(options.delay_seconds, options.longest_delay_seconds) < 0:
        parser.error("--tries and --host-failures must be 1 or more, --delay-seconds and --longest-delay-seconds 0 or more")
    return options, behind


class Supervisor:
    """Starts a job until it is finished, stopped, or hopeless."""

    def __init__(self, job: Job, options: argparse.Namespace) -> None:
        self.job = job
        self.options = options
        self.folder = job.config.folder / FOLDER
        self._newest = newest_step(job.config.folder)
        self._log = AppendedFile(self.folder / "log.jsonl")
        self._dropped: dict[str, str] = {}
        self._blamed: Counter[str] = Counter()
        self._asked_to_stop = 0
        # DeepSpeed's launcher kills ranks 30 s after a signal and returns before them; the file gives a save its time.
        self._stop_file = job.config.folder / STOP_FILE if job.by_deepspeed else None

    def run(self) -> int:
        """See `main`."""
        failures, has_begun, ended = 0, False, None
        self._tidy_after_killed()
        while self._asked_to_stop == 0:  # It changes in the signals' thread.
            hosts = self._hosts()
            if self._asked_to_stop != 0:
                break
            if self.job.pool is not None and not hosts:
                failures += 1
                # Once a start was possible, it may be again: a network that is down takes all hosts away.
                if ended is None or failures >= self.options.tries:
                    return self._give_up("no set of hosts is left that the batch can be divided over", EXIT_USER_ERROR)
                self._wait(failures)
                continue
            try:
                words = self.job.command_on(hosts, self.folder / "hostfile")
            except ValueError as error:
                return self._give_up(str(error), EXIT_USER_ERROR)
            before = self._step()
            attempt = Attempt(words, {**KEEPALIVE, **os.environ}, self._stop_file, self.job.config.training.stop_grace_seconds)
            listen(attempt.ask_to_stop, attempt.end_at_once)
            if self._asked_to_stop != 0:
                attempt.ask_to_stop(self._asked_to_stop)  # It came while the command was being started.
            self._note("started", step=before, hosts=[host.name for host in hosts], pid=os.getpid())
            ended = attempt.wait()
            listen(self._stop_waiting)
            step = self._step()
            if ended.code == 0:
                self._note("finished", step=step)
                return 0
            if attempt.signal_number or ended.code - 128 in HANDLED:
                self._note("stopped", step=step, exit_code=ended.code)
                return ended.code
            has_begun |= attempt.have_met or attempt.could_not_read or step != before  # No mistake: a disk that is gone may come back.
            if ended.code == EXIT_USER_ERROR and not has_begun and all(answering(hosts, self.job.ssh_port).values()):
                return self._give_up(f"a restart would not help: {ended.cause}", EXIT_USER_ERROR)
            failures = 1 if step != before else failures + 1
            self._note("failed", step=step, exit_code=ended.code, cause=ended.cause, first_host=ended.first_host, without_progress=failures)
            self._blame(ended, gained=step != before)
            self._end_leftovers()
            if failures >= self.options.tries:
                return self._give_up(f"{failures} failures in a row without a new checkpoint, the last: {ended.cause}", ended.code)
            self._wait(failures)
        self._note("stopped", step=self._step(), exit_code=128 + self._asked_to_stop)
        return 128 + self._asked_to_stop

    def _step(self) -> int:
        with contextlib.suppress(OSError):  # While the disk is gone, it is the last that was seen.
            self._newest = newest_step(self.job.config.folder)
        return self._newest

    def _tidy_after_killed(self) -> None:
        """End what a supervisor before this one left if it ended without a word: only then is what still runs known to be nobody's."""
        try:
            was_killed = json.loads(self._log.path.read_text(encoding="utf-8").splitlines()[-1])["event"] == "started"
        except (OSError, ValueError, IndexError, KeyError):
            return
        if was_killed:
            self._end_leftovers()
            if self._stop_file:
                take_away(self._stop_file)  # Asked of ranks that have gone with it.

    def _end_leftovers(self) -> None:
        """What still runs of a start that has ended or was lost holds devices, ports and the run's lock."""
        found: dict[str, str | None] = {"here": str(end(self.job.words, Path.cwd()))}
        if self.job.pool and (self.folder / "hostfile").exists():
            remote = [host for host in self.job.pool.all if not host.is_here]
            command = [sys.executable, "-m", "training.supervision.leftovers", json.dumps(self.job.words)]
            found |= on_each(remote, command, self.job.ssh_port)
        left = {name: count for name, count in found.items() if count not in (None, "", "0")}
        if left:
            self._note("ended leftovers", processes=left)

    def _hosts(self) -> list[Host]:
        """Of the next start; says which are not among them."""
        pool = self.job.pool
        if pool is None:
            return []
        answers = answering(pool.all, self.job.ssh_port)
        chosen = choose(pool, lambda host: answers[host.name] and host.name not in self._dropped, self.job.fits)
        missing = {host.name: self._why_not(host, answers[host.name]) for host in pool.wanted if host not in chosen}
        if missing:  # Where nobody is, no spare was chosen either.
            self._note("hosts", used=[host.name for host in chosen], left_out=missing)
        return chosen

    def _why_not(self, host: Host, answers: bool) -> str:
        silent = "does not answer to ssh, or does not see this folder"
        return self._dropped.get(host.name, "not needed: the batch divides over fewer" if answers else silent)

    def _blame(self, ended: Ended, *, gained: bool) -> None:
        """A host on which failures begin again and again is left out, if another can do its work or others are left."""
        pool = self.job.pool.all if self.job.pool else ()
        host = next((known.name for known in pool if known.is_called(ended.first_host)), None) if ended.first_host else None
        if gained or host is None or (self._blamed and host not in self._blamed):
            self._blamed.clear()
        if host is None:
            return
        self._blamed[host] += 1
        if self._blamed[host] >= self.options.host_failures and len(pool) - len(self._dropped) > 1:
            self._dropped[host] = f"{self._blamed[host]} failures in a row began there"
            self._blamed.clear()

    def _wait(self, failures: int) -> None:
        seconds = min(self.options.delay_seconds * 2 ** (failures - 1), self.options.longest_delay_seconds)
        self._note("waiting", seconds=round(seconds, 1), step=self._step())
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._asked_to_stop:
            time.sleep(0.1)

    def _stop_waiting(self, number: int) -> None:
        """In the signals' thread, between two attempts."""
        self._asked_to_stop = number

    def _give_up(self, why: str, code: int) -> int:
        self._note("gave up", step=self._step(), why=why)
        return code

    def _note(self, event: str, **facts: Any) -> None:
        """Say it and write it down."""
        shown = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items() if value not in (None, {}, []))
        say(f"supervise: {event}: {shown}")
        record = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **facts}
        self._log.append(json.dumps(record, ensure_ascii=False).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
