"""Ranks meet before the process group exists. Threads stand for ranks: the meeting is sockets and files, and needs no torch."""

import itertools
import socket
import threading
import time
from dataclasses import replace

import pytest

from training import meeting
from training.local import free_port
from training.meeting import Arrival, judge, meet
from training.world import World


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(meeting, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(meeting, "ANSWER_SECONDS", 2.0)


@pytest.fixture
def worlds():
    """Four ranks, two on a host."""
    port = free_port()
    return [World(rank=rank, local_rank=rank % 2, size=4, local_size=2, master_addr="127.0.0.1", master_port=port) for rank in range(4)]


def hold(worlds, arrivals, limit_seconds=10.0):
    """What `meet` tells each rank; None in `arrivals` is a rank that does not come."""
    verdicts = {}

    def attend(world, arrival):
        verdicts[world.rank] = meet(world, arrival, limit_seconds)

    attending = [(world, arrival) for world, arrival in zip(worlds, arrivals, strict=True) if arrival]
    # Rank 0 last: the others find nobody listening at first.
    threads = [threading.Thread(target=attend, args=pair) for pair in reversed(attending)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    return verdicts


def test_ranks_that_agree_start_and_leave_the_port_and_the_folder_clean(worlds, tmp_path):
    arrival = Arrival(stages=2, folder=tmp_path, facts={"the token store": "1a2b"})
    assert hold(worlds, [arrival] * 4) == dict.fromkeys(range(4))
    assert not list(tmp_path.iterdir())
    socket.create_server(("", worlds[0].master_port)).close()


def test_one_ranks_own_problem_is_said_by_rank_0_with_the_hosts_name(worlds, tmp_path):
    fine = Arrival(stages=2, folder=tmp_path)
    started = time.monotonic()
    verdicts = hold(worlds, [fine, fine, Arrival(problem="no token store"), Arrival(problem="no token store")])
    assert verdicts.pop(0) == [f"rank 2 on {socket.gethostname()}: no token store"]
    assert verdicts == {1: [], 2: [], 3: []}
    assert time.monotonic() - started < 5


def test_a_problem_all_ranks_share_is_not_repeated(worlds):
    assert hold(worlds, [Arrival(problem="unknown key")] * 4) == {0: [], 1: [], 2: [], 3: []}


def test_ranks_that_do_not_come_are_named_when_the_time_is_over(worlds, tmp_path):
    fine = Arrival(stages=2, folder=tmp_path)
    verdicts = hold(worlds, [fine, fine, None, None], limit_seconds=0.5)
    (line,) = verdicts[0]
    assert "2 of 4 ranks (2, 3; host number 2 of the job) did not come within" in line
    assert verdicts[1] == []


def test_without_rank_0_one_rank_of_each_host_speaks(worlds, tmp_path):
    fine = Arrival(stages=2, folder=tmp_path)
    verdicts = hold(worlds, [None, fine, fine, Arrival(problem="no such file")], limit_seconds=0.5)
    assert verdicts[1] == verdicts[3] == []
    assert "no answer from rank 0 at 127.0.0.1" in verdicts[2][0]


def test_hosts_that_do_not_share_the_runs_folder_or_use_other_data_or_software_are_told(worlds, tmp_path):
    fine = Arrival(stages=2, folder=tmp_path, facts={"the token store": "1a2b", "the software": "torch 2.13.0"})
    known = {rank: {"host": "beta", "problem": None, "sees_token": True, "facts": fine.facts} for rank in range(1, 4)}
    blind = {**known, 3: {**known[3], "sees_token": False}}
    (line,) = judge(worlds[0], fine, blind, 10)
    assert line.startswith(f"host beta does not see {tmp_path}")
    other = {**known, 3: {**known[3], "facts": {**fine.facts, "the token store": "9z"}}}
    (line,) = judge(worlds[0], fine, other, 10)
    assert line.startswith("host beta: the token store: 9z, but on ")


def test_a_rank_looks_for_the_file_rank_0_made(worlds, tmp_path, monkeypatch):
    monkeypatch.setattr(meeting, "SIGHT_SECONDS", 0.5)
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.setattr(meeting, "_job", lambda world, own: {"size": 4, "folder": "runs/one"})  # the same relative path on two disks
    here, there = (Arrival(stages=2, folder=tmp_path / name) for name in ("here", "there"))
    (line,) = hold(worlds, [here, here, there, there])[0]
    assert line.startswith(f"host {socket.gethostname()} does not see {tmp_path / 'here'}")


def test_a_pipeline_that_lies_across_hosts_is_refused_and_whole_ones_are_not(worlds, tmp_path):
    fine = Arrival(stages=2, folder=tmp_path)

    def lines(*hosts):
        arrivals = {rank: {"host": host, "problem": None, "sees_token": True, "facts": {}} for rank, host in enumerate(hosts, start=1)}
        return judge(worlds[0], fine, arrivals, 10)

    here = socket.gethostname()
    assert lines(here, "beta", "beta") == []
    (line,) = lines("beta", here, "beta")  # mpiexec's round-robin numbering
    assert f"ranks 0-1 are one pipeline, but they are on {here}, beta" in line
    assert "--map-by slot" in line


def test_a_port_that_is_taken_is_said_at_once(worlds, tmp_path):
    fine = Arrival(stages=2, folder=tmp_path)
    with socket.create_server(("", worlds[0].master_port)):
        (line,) = meet(worlds[0], fine, 5)
        assert f"port {worlds[0].master_port} cannot be opened" in line
        assert "--master_port" in line


def test_two_jobs_on_one_port_do_not_mix(worlds, tmp_path):
    fine = Arrival(stages=2, folder=tmp_path)
    verdicts = {}
    first = threading.Thread(target=lambda: verdicts.update({0: meet(worlds[0], fine, 10)}))
    first.start()
    (line,) = meet(worlds[2], replace(fine, folder=tmp_path / "other"), 10)
    assert f"is another job's (its folder: {tmp_path}). Use another port." in line
    verdicts |= hold(worlds, [None, fine, fine, fine])
    first.join()
    assert verdicts == dict.fromkeys(range(4))


def test_strangers_at_the_port_disturb_nobody(worlds, tmp_path):
    fine = Arrival(stages=2, folder=tmp_path)
    stop = threading.Event()

    def knock():
        for count in itertools.count():
            if stop.is_set():
                return
            try:
                with socket.create_connection(("127.0.0.1", worlds[0].master_port), timeout=1) as connection:
                    connection.sendall([b"GET / HTTP/1.0\r\n\r\n", b'{"rank": 99}\n', b"[]\n", b'{"rank": "2"}\n'][count % 4])
            except OSError:
                time.sleep(0.01)

    stranger = threading.Thread(target=knock)
    stranger.start()
    try:
        assert hold(worlds, [fine] * 4) == dict.fromkeys(range(4))
    finally:
        stop.set()
        stranger.join()
