"""A supervised job on two hosts: one of them dies, and the run goes on with what is left, its global batch kept."""

from __future__ import annotations

import json
import sys

import pytest

from tests.cluster.hosts import Started, deepspeed, needs_hosts

pytestmark = [
    pytest.mark.multinode,
    pytest.mark.distributed,
    needs_hosts,
]


@pytest.fixture(scope="module")
def lost_host(hosts, config, root):
    """The job after everything on its second host was killed, sshd too: exit code, what was printed, and the run's folder."""
    folder = config.parent / "runs" / "supervised"
    words = deepspeed(hosts.hostfile((2, 2)), str(config), "run.name=supervised", "training.steps=8", "training.watchdog_seconds=60")
    supervised = [sys.executable, "-m", "training.supervise", "--delay-seconds", "1", "--", *words]
    # Keepalive: ssh notices within seconds that the other host has gone.
    job = Started(hosts, supervised, root, PDSH_SSH_ARGS_APPEND="-o ServerAliveInterval=2 -o ServerAliveCountMax=2")
    job.wait_for((folder / "checkpoints/step00000002/manifest.json").exists, "a checkpoint")
    hosts.all[1].kill_everything()
    code, output = job.finish()
    return code, output, folder


def test_the_run_is_finished_on_the_host_that_is_left(lost_host):
    code, output, folder = lost_host
    assert code == 0, output
    assert (folder / "checkpoints/step00000008/manifest.json").exists()
    manifest = json.loads((folder / "checkpoints/step00000008/manifest.json").read_text(encoding="utf-8"))
    assert manifest["topology"] == {"pipe": 2, "data": 1}
    assert manifest["consumed_samples"] == 8 * 8, "the global batch is the same with half the replicas"


def test_the_log_says_which_host_was_left_out_and_why(lost_host):
    _, output, folder = lost_host
    events = [json.loads(line) for line in (folder / "supervisor/log.jsonl").read_text(encoding="utf-8").splitlines()]
    (changed,) = [one for one in events if one["event"] == "hosts"]
    assert changed["used"] == ["alpha"]
    assert changed["left_out"] == {"beta": "does not answer to ssh, or does not see this folder"}
    assert [one["hosts"] for one in events if one["event"] == "started"] == [["alpha", "beta"], ["alpha"]], output
