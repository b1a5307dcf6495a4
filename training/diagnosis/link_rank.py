"""One rank of `python -m training.doctor --links`: it meets the others as in a run, talks to its neighbours, and says what it does.

A launcher starts it. Every report is one line of JSON on standard output, behind `MARK`: launchers pass output on, so reports reach the
doctor also where the network between ranks does not work. `link_reports.py` reads them. What ranks that have met send each other is
`link_traffic.py`.
"""

import argparse
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from training.launch.preflight_reports import Report
from training.launch.process_tree import watch_launcher
from training.launch.rendezvous import agree_to_start
from training.launch.world import World, find_world

MARK = "@link "
BEAT_SECONDS = 2.0
# A rank that nobody can end (its host was cut off) ends itself so long after the doctor gave up.
MARGIN_SECONDS = 30.0


class Reporter:
    """Says where this rank is, and every two seconds that it is alive."""

    def __init__(self, rank: int, limit_seconds: float) -> None:
        self._rank = rank
        self._limit_seconds = limit_seconds
        self._said_at = time.monotonic()
        threading.Thread(target=self._beat, daemon=True).start()

    def say(self, **what: Any) -> None:
        """Report."""
        self._said_at = time.monotonic()
        self._write(what)

    def _write(self, what: dict[str, Any]) -> None:
        line = MARK + json.dumps({"rank": self._rank, **what}, ensure_ascii=True)
        try:
            os.write(1, f"{line}\n".encode())  # One write: lines of several ranks share a pipe.
        except OSError:
            os._exit(1)  # Nobody listens any more.

    def _beat(self) -> None:
        while time.monotonic() - self._said_at < self._limit_seconds + MARGIN_SECONDS:
            self._write({"beat": True})
            time.sleep(BEAT_SECONDS)
        os._exit(1)


def main(arguments: Sequence[str]) -> int:
    """Go through all steps. Returns 0, or 1 after a report of what failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("token", help="by which the doctor finds its processes")
    parser.add_argument("--stages", type=int, required=True)
    parser.add_argument("--precision", choices=("auto", "true", "false"), required=True)
    parser.add_argument("--mebibytes", type=int, required=True)
    parser.add_argument("--limit-seconds", type=float, required=True)
    options, _ = parser.parse_known_args(arguments)  # The launcher adds --local_rank.
    watch_launcher(os.environ)
    logging.basicConfig(level=logging.ERROR)
    world = find_world(os.environ)
    reporter = Reporter(world.rank, options.limit_seconds)
    try:
        return 0 if _run(world, options, reporter) else 1
    except Exception as error:  # Whatever it is, the doctor's table is where it belongs.
        reporter.say(error=f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        return 1


def _run(world: World, options: argparse.Namespace, reporter: Reporter) -> bool:
    """False if the ranks did not meet; why, is said."""
    reporter.say(step="meet", host=socket.gethostname())
    if not agree_to_start(world, Report(stages=options.stages), options.limit_seconds, lambda line: reporter.say(error=line)):
        return False
    reporter.say(step="group")
    from training.launch.process_group import prepare_environment, quiet, start

    prepare_environment(world)
    with quiet():
        from training.diagnosis import link_traffic

        ranks = start(world, options.stages)
    link_traffic.use(ranks, options.precision, options.mebibytes, reporter)
    return True


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # As a run's rank does: threads that wait in C++ would abort it.
