"""A supervised job on two hosts: one of them dies, and the run goes on with what is left, its global batch kept."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.hosts import Hosts, Started, deepspeed, needs_hosts

pytestmark = [
    pytest.mark.multinode,
    pytest.mark.distributed,
    needs_hosts,
]

STEPS = 8
SIX = pytest.param(6, marks=pytest.mark.slow, id="six_stages")  # Twelve ranks: two cores take their time.


def events_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "supervisor/log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_host_the_launcher_cannot_reach_is_left_out_soon_although_rank_0_is_elsewhere(hosts: Hosts, config: Path, root: Path) -> None:
    """Rank 0 cannot see that the launcher's ssh has ended. And of one host left, DeepSpeed would start the ranks where it is typed."""
    folder = config.parent / "runs" / "soon"
    hostfile = hosts.folder / "beta_first"
    hostfile.write_text("beta slots=2\nalpha slots=2\n", encoding="utf-8")
    command = deepspeed(hostfile, str(config), "run.name=soon", "training.steps=2")
    # The supervisor asks its own host nothing over ssh, but DeepSpeed's launcher goes to it so.
    for process in hosts.all[0].pids("/usr/sbin/sshd -D"):
        hosts.all[0].kill(signal.SIGKILL, process)
    started = time.monotonic()
    try:
        options = ["--delay-seconds", "0.1", "--host-failures", "1"]
        code, output = Started(hosts, [sys.executable, "-m", "training.supervise", *options, "--", *command], root).finish()
    finally:
        hosts.all[0].start_ssh(hosts.folder)
    assert code == 0, output
    assert time.monotonic() - started < 200, "300 s is what ranks that are only late may take"
    (failed,) = [one for one in events_of(folder) if one["event"] == "failed"]
    assert failed["exit_code"] == 255
    assert failed["cause"].startswith("host alpha took no part in the start: ssh: connect to host alpha port 22")
    (changed,) = [one for one in events_of(folder) if one["event"] == "hosts"]
    assert changed["left_out"] == {"alpha": "1 failures in a row began there"}
    assert "pipeline 0: ranks 0-1 on beta" in output


def test_a_stop_of_ranks_on_two_hosts_returns_when_they_have_saved_and_left(hosts: Hosts, config: Path, root: Path) -> None:
    """DeepSpeed's launcher, were it asked, would return after 3 s and kill ranks after 30."""
    folder = config.parent / "runs" / "asked"
    changes = ["run.name=asked", "training.steps=100000", "training.save_interval_steps=100000"]
    command = deepspeed(hosts.hostfile((2, 2)), str(config), *changes)
    job = Started(hosts, [sys.executable, "-m", "training.supervise", "--", *command], root)
    records = folder / "metrics.jsonl"
    job.wait_for(lambda: records.exists() and '"step": 2' in records.read_text(encoding="utf-8"), "two steps")
    (supervisor,) = hosts.all[0].pids("training.supervise")
    hosts.all[0].kill(signal.SIGINT, supervisor)
    code, output = job.finish()
    assert code == 128 + signal.SIGTERM, output
    assert not [process for host in hosts.all for process in host.pids("run.name=asked")]
    assert len(list((folder / "checkpoints").glob("step*/manifest.json"))) == 1
    assert not (folder / "STOP").exists()
    assert events_of(folder)[-1]["event"] == "stopped"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A job that has ended: how, and what it wrote."""

    code: int
    output: str
    folder: Path
    stages: int

    def losses(self) -> list[float]:
        """Of every step."""
        lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [record["train/loss"] for record in map(json.loads, lines) if "train/loss" in record]


def words(hosts: Hosts, config: Path, name: str, stages: int) -> Sequence[str]:
    """The words that start a pipeline on either host, as many slots as stages."""
    changes = [f"run.name={name}", f"training.steps={STEPS}", f"pipeline.stages={stages}", "model.dropout=0.0"]
    return deepspeed(hosts.hostfile((stages, stages)), str(config), *changes, "training.watchdog_seconds=60")


@pytest.fixture(scope="module", params=[pytest.param(2, id="two_stages"), SIX])
def lost_host(request: pytest.FixtureRequest, hosts: Hosts, config: Path, root: Path) -> Finished:
    """The job after everything on its second host was killed, sshd too."""
    stages: int = request.param
    name = f"supervised_{stages}"
    folder = config.parent / "runs" / name
    supervised = [sys.executable, "-m", "training.supervise", "--delay-seconds", "1", "--", *words(hosts, config, name, stages)]
    # Keepalive: ssh notices within seconds that the other host has gone.
    job = Started(hosts, supervised, root, PDSH_SSH_ARGS_APPEND="-o ServerAliveInterval=2 -o ServerAliveCountMax=2")
    job.wait_for((folder / "checkpoints/step00000002/manifest.json").exists, "a checkpoint")
    hosts.all[1].kill_everything()
    code, output = job.finish()
    hosts.all[1].start_ssh(hosts.folder)
    return Finished(code=code, output=output, folder=folder, stages=stages)


def test_the_run_is_finished_on_the_host_that_is_left(lost_host: Finished) -> None:
    assert lost_host.code == 0, lost_host.output
    manifest = json.loads((lost_host.folder / f"checkpoints/step{STEPS:08d}/manifest.json").read_text(encoding="utf-8"))
    assert manifest["topology"] == {"pipe": lost_host.stages, "data": 1}
    assert manifest["consumed_samples"] == STEPS * 8, "the global batch is the same with half the replicas"


def test_the_log_says_which_host_was_left_out_and_why(lost_host: Finished) -> None:
    events = events_of(lost_host.folder)
    (changed,) = [one for one in events if one["event"] == "hosts"]
    assert changed["used"] == ["alpha"]
    assert changed["left_out"] == {"beta": "does not answer to ssh, or does not see this folder"}
    assert [one["hosts"] for one in events if one["event"] == "started"] == [["alpha", "beta"], ["alpha"]], lost_host.output


@pytest.mark.slow
def test_its_losses_are_those_of_a_run_that_lost_no_host(lost_host: Finished, hosts: Hosts, config: Path, root: Path) -> None:
    name = f"undisturbed_{lost_host.stages}"
    code, output = Started(hosts, words(hosts, config, name, lost_host.stages), root).finish()
    assert code == 0, output
    whole = Finished(code=code, output=output, folder=lost_host.folder.with_name(name), stages=lost_host.stages).losses()
    assert len(whole) == STEPS
    assert lost_host.losses() == pytest.approx(whole, abs=1e-3)
    assert whole[-1] < whole[0] - 0.1, "the losses fall, so equal ones mean something"
