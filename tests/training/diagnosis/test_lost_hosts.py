"""Which hosts rank 0 gives up: by a stand-in pdsh with a child for each host that is reached, and by the hosts' port for ssh."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import sys

import pytest

from tests import processes
from training.launch.process_tree import command_of

SSH = "import time; time.sleep(1000)"
ASK = "from training.diagnosis.lost_hosts import lost_ranks; print(lost_ranks(range(2)))"


def world_info(slots):
    return "--world_info=" + base64.urlsafe_b64encode(json.dumps(slots).encode()).decode()


@pytest.mark.parametrize(
    ("hosts", "called", "lost"),
    [
        (["a", "b"], ["a"], {1: "b"}),
        (["a", "b"], ["a", "b"], {}),
        # ssh is given the user as an option.
        (["me@a", "me@b"], ["-lme", "a", "b"], {}),
        (["me@a", "me@b"], ["-lme", "a"], {1: "me@b"}),
    ],
)
def test_hosts_whose_ssh_has_ended_are_lost_and_no_others(root, hosts, called, lost):
    word = world_info({host: [0] for host in hosts})
    ssh = [sys.executable, "-c", SSH, *called]
    pdsh = processes.start(["bash", "-c", 'exec -a pdsh bash -c "$0" "$@"', '"${@:2}" & wait', "bash", word, *ssh])
    processes.wait_until(lambda: ssh in [command_of(child)[:-1] for child in processes.descendants(pdsh.pid)], "the ssh")
    assert processes.run([sys.executable, "-c", ASK, word], cwd=root).stdout == f"{lost}\n"
    processes.end(pdsh)


ASK_FOR_SSH = """
import sys
from training.diagnosis import lost_hosts
print(lost_hosts.ranks_without_ssh([int(rank) for rank in sys.argv[2].split()]))
"""


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh: apt-get install openssh-client")
@pytest.mark.parametrize(
    ("listening", "absent", "lost"),
    [
        (["127.0.0.2"], [2, 3], {2: "me@alias", 3: "no.such.host.invalid"}),
        # One of the missing is only late, and so may the other be.
        (["127.0.0.2", "127.0.0.3"], [2, 3], {}),
        (["127.0.0.2", "127.0.0.3"], [3, 4], {3: "no.such.host.invalid"}),
        # Hosts may be kept from each other's ssh.
        ([], [2, 3], {}),
        # Of two hosts nothing can be told.
        (["127.0.0.2"], [1, 2, 3], {}),
    ],
)
def test_hosts_that_accept_no_ssh_are_lost_if_others_accept_it(root, listening, absent, lost, tmp_path):
    word = world_info({"127.0.0.1": [0], "127.0.0.2": [0], "me@alias": [0], "no.such.host.invalid": [0]})
    with contextlib.ExitStack() as servers:
        port = servers.enter_context(socket.create_server(("127.0.0.4", 0))).getsockname()[1]
        for host in listening:
            servers.enter_context(socket.create_server((host, port)))
        (tmp_path / "config").write_text(f"Host alias\n  HostName 127.0.0.3\nHost *\n  Port {port}\n", encoding="utf-8")
        (tmp_path / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {tmp_path}/config "$@"\n', encoding="utf-8")
        (tmp_path / "ssh").chmod(0o755)
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        ask = [sys.executable, "-c", ASK_FOR_SSH, word, " ".join(map(str, absent))]
        assert processes.run(ask, cwd=root, env=environment).stdout == f"{lost}\n"


def test_ranks_that_did_not_come_are_said_with_their_hosts_also_where_slots_differ(root):
    program = (
        "from training.launch.preflight_reports import Report, reasons_against; from training.launch.world import World; "
        "world = World(rank=0, local_rank=0, size=8, local_size=2, master_addr='127.0.0.1', master_port=1); "
        "one = {'problem': None, 'sees': True, 'host': 'x', 'facts': {}, 'loopback': False}; "
        "print(*reasons_against(world, Report(), {rank: one for rank in (1, 6, 7)}, 300, {}))"
    )
    word = world_info({"a": [0, 1], "b": [0, 1, 2, 3], "c": [0, 1]})
    said = processes.run([sys.executable, "-c", program, word], cwd=root).stdout
    assert said.startswith("4 of 8 ranks (2, 3, 4, 5; host b) did not come within 300 s.")
