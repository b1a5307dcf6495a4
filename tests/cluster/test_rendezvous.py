"""The rendezvous before the process group exists. Threads stand for ranks: it is sockets and files, and needs no torch."""

import contextlib
import itertools
import json
import socket
import threading
import time
from dataclasses import replace

import pytest

from training.launch import rendezvous, sockets
from training.launch.local import free_port
from training.launch.preflight_reports import Report, is_report, reasons_against, where_to_look
from training.launch.rendezvous import agree_to_start
from training.launch.world import World

pytestmark = pytest.mark.processes

HERE = socket.gethostname()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(rendezvous, "PATIENCE_SECONDS", 1.0)


def make_worlds(size, local_size):
    port = free_port()
    return [
        World(rank=rank, local_rank=rank % local_size, size=size, local_size=local_size, master_addr="127.0.0.1", master_port=port)
        for rank in range(size)
    ]


@pytest.fixture
def worlds():
    """Four ranks, two on a host."""
    return make_worlds(4, 2)


def hold(worlds, reports, limit_seconds=60.0):
    """Who starts, and all that was said, as rank -> lines; None in `reports` is a rank that does not come."""
    starts, said = {}, {}

    def attend(world, report):
        starts[world.rank] = agree_to_start(world, report, limit_seconds, lambda line: said.setdefault(world.rank, []).append(line))

    attending = [(world, report) for world, report in zip(worlds, reports, strict=True) if report]
    # Rank 0 last: the others find nobody listening at first.
    threads = [threading.Thread(target=attend, args=pair, daemon=True) for pair in reversed(attending)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    assert len(set(starts.values())) == 1, "all start, or nobody does"
    return starts[attending[0][0].rank], said


def test_ranks_that_agree_start_and_leave_the_port_and_the_folder_clean(worlds, tmp_path):
    report = Report(stages=2, folder=tmp_path, facts={"the token store": "1a2b"})
    assert hold(worlds, [report] * 4) == (True, {})
    assert not list(tmp_path.iterdir())
    socket.create_server(("", worlds[0].master_port)).close()


def test_many_ranks_that_do_not_see_the_folder_take_no_longer_than_one(monkeypatch, tmp_path):
    monkeypatch.setattr(rendezvous, "SIGHT_SECONDS", 1.0)
    monkeypatch.setattr(rendezvous, "PATIENCE_SECONDS", 60.0)  # Once the first is heard, the others have this long to come.
    worlds = make_worlds(64, 4)
    monkeypatch.setattr(rendezvous, "_job", lambda world, own: {"size": 64, "folder": "runs/one"})  # the same relative path on two disks
    (tmp_path / "here").mkdir()
    here, there = (Report(stages=2, folder=tmp_path / name) for name in ("here", "there"))
    waited = []
    sleep = time.sleep

    def note_and_sleep(seconds: float) -> None:
        waited.append(threading.get_ident())
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", note_and_sleep)
    start, said = hold(worlds, [here] * 4 + [there] * 60, limit_seconds=600)
    assert not start
    assert said.keys() == {0}
    (line,) = said[0]
    assert (
        line
        == f"host {HERE} does not see {tmp_path / 'here'}, where {HERE} has just written: run.directory must be on a path all hosts share."
    )
    assert len(set(waited)) >= 60, "each looked for itself, none in rank 0's thread"


def test_one_ranks_own_problem_is_said_once_by_a_rank_that_has_it(worlds, tmp_path):
    fine = Report(stages=2, folder=tmp_path)
    start, said = hold(worlds, [fine, fine, Report(problem="no token store"), Report(problem="no token store")])
    assert not start
    assert said == {2: [f"rank 2 on {HERE}: no token store"]}


def test_a_runs_folder_that_rank_0_cannot_write_to_is_said_by_it_alone_and_ends_all(worlds, tmp_path):
    gone = tmp_path / "gone"
    start, said = hold(worlds, [Report(stages=2, folder=gone)] * 4)
    assert not start
    because = "cannot be written (No such file or directory). Make room, or set run.directory."
    assert said == {0: [f"host {HERE}: the run's folder {gone} {because}"]}


def test_a_problem_all_ranks_share_is_not_repeated(worlds):
    assert hold(worlds, [Report(problem="unknown key")] * 4) == (False, {})


def test_ranks_that_do_not_come_are_named_when_the_time_is_over(worlds, tmp_path):
    fine = Report(stages=2, folder=tmp_path)
    start, said = hold(worlds, [fine, fine, None, None], limit_seconds=0.5)
    assert not start
    assert said.keys() == {0}
    assert "2 of 4 ranks (2, 3; host number 2 of the job) did not come within" in said[0][0]


def test_ranks_started_on_another_host_than_the_hostfiles_only_one_are_told_so(tmp_path):
    """DeepSpeed does so, without a word, where a hostfile with one host is used on another."""
    elsewhere = [replace(world, master_addr="192.0.2.1") for world in make_worlds(2, 2)]
    start, said = hold(elsewhere, [Report(stages=2, folder=tmp_path), None], limit_seconds=0.5)
    assert not start
    assert "1 of 2 ranks (1; host number 1 of the job) did not come within" in said[0][0]
    assert "are to meet at 192.0.2.1, which is no address of it." in said[0][0]
    assert said[0][0].endswith("put --force_multi behind deepspeed.")
    assert where_to_look(make_worlds(2, 2)[0]) == ""
    assert where_to_look(replace(make_worlds(4, 2)[0], master_addr="192.0.2.1")) == ""


def test_the_cause_is_said_and_not_that_others_are_missing(worlds, tmp_path):
    fine = Report(stages=2, folder=tmp_path)
    assert hold(worlds, [fine, fine, Report(problem="no token store"), None])[1] == {2: [f"rank 2 on {HERE}: no token store"]}


def test_without_rank_0_one_rank_of_each_host_speaks(worlds, tmp_path):
    fine = Report(stages=2, folder=tmp_path)
    start, said = hold(worlds, [None, fine, fine, Report(problem="no such file")], limit_seconds=0.5)
    assert not start
    assert said.keys() == {2}
    assert "no answer from rank 0 at 127.0.0.1" in said[2][0]


def test_hosts_that_do_not_share_the_runs_folder_or_use_other_data_or_software_are_told(worlds, tmp_path):
    fine = Report(stages=2, folder=tmp_path, facts={"the token store": "1a2b", "the software": "torch 2.13.0"})
    known = {rank: {"host": "beta", "problem": None, "sees": True, "loopback": False, "facts": fine.facts} for rank in range(1, 4)}
    (line,) = reasons_against(worlds[0], fine, {**known, 3: {**known[3], "sees": False}}, 10, {})
    assert line.startswith(f"host beta does not see {tmp_path}")
    other = {**known, 3: {**known[3], "facts": {**fine.facts, "the token store": "9z"}}}
    (line,) = reasons_against(worlds[0], fine, other, 10, {})
    assert line.startswith("host beta: the token store: 9z, but on ")


def test_a_pipeline_that_lies_across_hosts_is_refused_and_whole_ones_are_not(worlds, tmp_path):
    fine = Report(stages=2, folder=tmp_path)

    def lines(*hosts):
        same = {"problem": None, "sees": True, "loopback": False, "facts": {}}
        reports = {rank: {**same, "host": host} for rank, host in enumerate(hosts, start=1)}
        return reasons_against(worlds[0], fine, reports, 10, {})

    assert lines(HERE, "beta", "beta") == []
    (line,) = lines("beta", HERE, "beta")  # mpiexec's round-robin numbering
    assert f"ranks 0-1 are one pipeline, but they are on {HERE}, beta" in line
    assert "--map-by slot" in line


def test_a_port_that_is_taken_is_said_at_once(worlds, tmp_path):
    said = []
    with socket.create_server(("", worlds[0].master_port)):
        assert not agree_to_start(worlds[0], Report(stages=2, folder=tmp_path), 600, said.append)
    assert f"port {worlds[0].master_port} cannot be opened for the ranks to meet (Address already in use)" in said[0]
    assert "--master_port" in said[0]


def test_two_jobs_on_one_port_do_not_mix(worlds, tmp_path):
    fine = Report(stages=2, folder=tmp_path)
    start, said = {}, []
    first = threading.Thread(target=lambda: start.update({0: agree_to_start(worlds[0], fine, 60, said.append)}), daemon=True)
    first.start()
    assert not agree_to_start(worlds[2], replace(fine, folder=tmp_path / "other"), 60, said.append)
    assert "is another job's. Use another port" in said.pop()
    assert hold(worlds, [None, fine, fine, fine]) == (True, {})
    first.join(timeout=60)
    assert start == {0: True}
    assert not said


REPORT = {"rank": 2, "host": "beta", "problem": None, "facts": {"a": "b"}, "loopback": False, "secret": ""}
STRANGERS = [
    b"GET / HTTP/1.0\r\n\r\n",
    b"[" * 100_000 + b"\n",
    b"[" * 60_000 + b"\n",
    b"[]\n",
    b'{"rank": 99}\n',
    b"\x00\xff" * 100_000,
    b"",
    *(
        json.dumps({**REPORT, **wrong}).encode() + b"\n"
        for wrong in (
            {"rank": 99},
            {"rank": True},
            {"rank": "2"},
            {"rank": [2]},
            {"host": "evil\nhost"},
            {"host": None},
            {"facts": {"a": "\x1b[2J"}},
            {"facts": [1]},
            {"problem": 7},
            {"secret": None},
            {"loopback": 1},
            {"secret": "é"},
            {"problem": "x" * 5000},
        )
    ),
]


@pytest.mark.parametrize("stranger", STRANGERS[7:])
def test_what_is_not_exactly_a_report_is_none(stranger):
    assert is_report(REPORT, 4)
    message = json.loads(stranger)
    # The secret is compared, not checked: any text may stand there.
    assert is_report(message, 4) == (message["secret"] == "é")


def test_strangers_at_the_port_disturb_nobody_and_nothing_of_theirs_is_said(worlds, tmp_path):
    fine = Report(stages=2, folder=tmp_path)
    stop, silent = threading.Event(), []

    def knock():
        for count in itertools.count():
            if stop.is_set():
                return
            with contextlib.suppress(OSError):
                if len(silent) < 100:
                    silent.append(socket.create_connection(("127.0.0.1", worlds[0].master_port), timeout=1))
                with socket.create_connection(("127.0.0.1", worlds[0].master_port), timeout=1) as connection:
                    connection.sendall([text for text in STRANGERS if b"\\u00e9" not in text][count % (len(STRANGERS) - 1)])
            time.sleep(0.001)

    stranger = threading.Thread(target=knock, daemon=True)
    stranger.start()
    try:
        assert hold(worlds, [fine] * 4) == (True, {})
    finally:
        stop.set()
        stranger.join()
        for connection in silent:  # They stayed and said nothing.
            connection.close()


def test_who_cannot_read_the_secret_cannot_take_a_ranks_place(worlds, tmp_path):
    fine = Report(stages=2, folder=tmp_path)
    start = {}
    first = threading.Thread(target=lambda: start.update({0: agree_to_start(worlds[0], fine, 60, lambda line: None)}), daemon=True)
    first.start()
    with sockets.reach(worlds[1], 60) as stranger:
        sockets.read(stranger)
        sockets.send(stranger, {**REPORT, "facts": {}, "rank": 1, "secret": "guess"})
        assert hold(worlds, [None, fine, fine, fine]) == (True, {})
        assert stranger.recv(1) == b"", "it was sent away"
    first.join(timeout=60)
    assert start == {0: True}


def test_ranks_of_one_host_listen_to_that_host_only(worlds):
    with sockets.listen(replace(worlds[0], size=2)) as server:
        assert server.getsockname()[0] == "127.0.0.1"
    with sockets.listen(worlds[0]) as server:
        assert server.getsockname()[0] in ("::", "0.0.0.0")


def test_beside_the_port_that_torchruns_agent_holds():
    world = World(rank=0, local_rank=0, size=2, local_size=2, master_addr="127.0.0.1", master_port=29500)
    assert world.rendezvous_port == 29500
    assert replace(world, port_is_held=True).rendezvous_port == 29501
    assert replace(world, port_is_held=True, master_port=65535).rendezvous_port == 65534


def test_two_hosts_with_loopback_names_are_refused_and_one_is_not(worlds):
    def said(*loopback):
        hosts = (HERE, HERE, "beta", "beta")
        same = {**REPORT, "facts": {}, "sees": True}
        reports = {rank: {**same, "rank": rank, "host": hosts[rank], "loopback": loopback[rank]} for rank in (1, 2, 3)}
        return reasons_against(worlds[0], Report(stages=2, loopback=loopback[0]), reports, 60.0, {})

    assert said(True, True, False, False) == said(False, False, True, True) == []
    (line,) = said(True, True, True, True)
    assert line.startswith(f"the own names of hosts {HERE}, beta resolve to loopback addresses")
