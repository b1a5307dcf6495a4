"""The rendezvous of as many ranks as a large job has, as processes of this machine."""

import json
import os
import re
import socket
import sys

import pytest

from tests import processes

pytestmark = pytest.mark.processes

HERE = socket.gethostname()


def start_many(root, folder, *arguments):
    """Ranks as processes (many_ranks.py): how many were told to start, what was said, and how long it took."""
    command = [sys.executable, "tests/training/launch/many_ranks.py", *map(str, arguments[:1]), folder, *map(str, arguments[1:])]
    done = processes.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# Thirty-two nodes of six, and more processes than this rank 0 may have files open unless it asks for more.
@pytest.mark.parametrize("size", [192, pytest.param(3072, marks=pytest.mark.slow)])
def test_ranks_by_the_thousand_meet_at_one_port_and_leave_together_if_one_has_a_problem(root, tmp_path, size):
    fine = start_many(root, tmp_path, size)
    assert (fine["answers"], fine["starts"], fine["said"]) == (size, size, [])
    failing = size // 2 + 7
    bad = start_many(root, tmp_path, size, failing)
    assert (bad["answers"], bad["starts"]) == (size, 0)
    assert bad["said"] == [[failing, f"rank {failing} on {HERE}: no such folder"]]
    print(f"{size} ranks: {fine['seconds']:.1f} s until all start, {bad['seconds']:.1f} s until all leave")


RANK_0 = (
    "from tests.training.launch.many_ranks import *; attend(World(rank=0, local_rank=0, size=12, local_size=6, master_addr='127.0.0.1', \
master_port=free_port()), Path('.'), None, 1)"
)


def test_a_host_that_allows_too_few_connections_says_so_beforehand(root):
    done = processes.run(["prlimit", "--nofile=100:100", sys.executable, "-c", RANK_0], cwd=root)
    said, told = map(json.loads, done.stdout.splitlines())
    line = r"rank 0, to which 12 ranks connect, needs \d+ open files, the limit is 100\. Raise it \(ulimit -Hn\)\."
    assert re.fullmatch(f"host {HERE}: {line}", said["said"])
    assert told["start"] is False
