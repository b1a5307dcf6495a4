"""A supervised job on two hosts: one of them dies, and the run goes on with what is left, its global batch kept."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts, Started, deepspeed, needs_hosts

pytestmark = [
    pytest.mark.multinode,
    pytest.mark.distributed,
    needs_hosts,
]

STEPS = 8
SIX = pytest.param(6, marks=pytest.mark.slow, id="six_stages")  # Twelve ranks: two cores take their time.


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
    lines = (lost_host.folder / "supervisor/log.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
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
