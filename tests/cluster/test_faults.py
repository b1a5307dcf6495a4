"""A supervised job on two hosts through every kind of loss: all of it ends, and the finished run equals an undisturbed one."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.hosts import Host, Hosts, Started, deepspeed, needs_hosts
from tests.training.conftest import train_many

pytestmark = [
    pytest.mark.multinode,
    pytest.mark.distributed,
    pytest.mark.alone,
    needs_hosts,
]

STEPS = 12
WATCHDOG_SECONDS = 30
# What is promised after a fault.
LEAVING_SECONDS = 60
# Steps of a second, so that a fault is over long before the last one.
SIZES = ["train_batch_size=200", "gradient_accumulation_steps=50", f"training.steps={STEPS}"]
RANK = "run_pretrain.sh --local_rank"
OF_THE_JOB = "run_pretrain.sh|deepspeed.launcher"


class Job(Started):
    """A run under a supervisor on the first host."""

    def __init__(self, hosts: Hosts, config: Path, root: Path, name: str) -> None:
        self.folder = config.parent / "runs" / name
        words = deepspeed(hosts.hostfile((2, 2)), str(config), f"run.name={name}", f"training.watchdog_seconds={WATCHDOG_SECONDS}", *SIZES)
        super().__init__(hosts, [sys.executable, "-m", "training.supervise", "--delay-seconds", "1", "--", *words], root)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Not as fast as can be: to look starts processes on the hosts, and steps take a second."""

        def looked() -> bool:
            time.sleep(0.1)
            return condition()

        super().wait_for(looked, what)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Of the supervisor's log."""
        path = self.folder / "supervisor/log.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [record for record in map(json.loads, lines) if record["event"] == kind]

    def curve(self) -> dict[int, tuple[float, float]]:
        return curve_of(self.folder)

    def seconds_until_gone(self, before: dict[str, set[int]]) -> float:
        """Until none of these processes is left on any host."""
        started = time.monotonic()
        self.wait_for(lambda: not any(before[host.name] & set(host.pids(OF_THE_JOB)) for host in self.hosts.all), "the end of all ranks")
        return time.monotonic() - started


def curve_of(folder: Path) -> dict[int, tuple[float, float]]:
    """Step -> (loss, gradient norm), as written: bit for bit."""
    path = folder / "metrics.jsonl"
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines()) if path.exists() else []
    return {record["step"]: (record["train/loss"], record["optim/grad_norm"]) for record in records if "train/loss" in record}


@pytest.fixture(scope="module")
def undisturbed(config: Path) -> dict[int, tuple[float, float]]:
    """The curve of the same run, by ranks on this machine: where they are is no part of what they compute."""
    train_many([{"config": str(config), "overrides": ["run.name=undisturbed", *SIZES], "world": 4}])
    return curve_of(config.parent / "runs/undisturbed")


def signal_rank(host: Host, number: int, local_rank: int) -> None:
    host.kill(number, host.pids(f"{RANK}={local_rank}")[-1])


def nothing(hosts: Hosts) -> None:
    """What needs no repair."""


# What is done to the hosts, and how they are mended before the restart.
FAULTS: dict[str, tuple[Callable[[Hosts], None], Callable[[Hosts], None]]] = {
    "kill_rank": (lambda hosts: signal_rank(hosts.all[1], signal.SIGKILL, 1), nothing),
    "kill_first_rank": (lambda hosts: signal_rank(hosts.all[0], signal.SIGKILL, 0), nothing),
    "kill_host": (lambda hosts: hosts.all[1].kill_everything(), lambda hosts: hosts.all[1].start_ssh(hosts.folder)),
    "stop_rank": (lambda hosts: signal_rank(hosts.all[1], signal.SIGSTOP, 0), nothing),
    "cut_link": (lambda hosts: hosts.all[1].set_link("down"), lambda hosts: hosts.all[1].set_link("up")),
    "cut_ranks_network": (
        lambda hosts: hosts.all[1].set_everything_but_ssh("down"),
        lambda hosts: hosts.all[1].set_everything_but_ssh("up"),
    ),
}
# A minute and a half for each; one of them is tried with every change.
TRIED = [pytest.param(name, marks=() if name == "cut_link" else pytest.mark.slow) for name in FAULTS]


@pytest.mark.parametrize("fault", TRIED)
def test_all_of_a_job_ends_after_a_fault_and_the_finished_run_equals_an_undisturbed_one(
    fault: str, hosts: Hosts, config: Path, root: Path, undisturbed: dict[int, tuple[float, float]]
) -> None:
    strike, repair = FAULTS[fault]
    job = Job(hosts, config, root, fault)
    job.wait_for(lambda: max(job.curve(), default=0) >= 3, "step 3")
    before = {host.name: set(job_processes(host)) for host in hosts.all}
    strike(hosts)
    seconds = job.seconds_until_gone(before)
    print(f"{fault}: all processes of the start had left after {seconds:.0f} s")
    job.wait_for(lambda: bool(job.events("failed")), "the failure")
    repair(hosts)
    code, output = job.finish()

    assert code == 0, output
    assert seconds < LEAVING_SECONDS
    (failed,) = job.events("failed")
    assert failed["exit_code"] not in (0, 2)
    first, second = job.events("started")
    assert second["hosts"] == first["hosts"] == ["alpha", "beta"]
    assert second["step"] >= 2, "it went on from a checkpoint"
    assert job.curve() == undisturbed
    assert sorted(job.curve()) == list(range(1, STEPS + 1))
    assert not any(job_processes(host) for host in hosts.all)


def job_processes(host: Host) -> list[int]:
    """Ranks and DeepSpeed's per-host launcher; on the first host not the supervisor, whose command names the run as well."""
    commands = {pid: host.read(f"/proc/{pid}/cmdline").replace("\0", " ") for pid in host.pids(OF_THE_JOB)}
    return [pid for pid, command in commands.items() if "training.supervise" not in command]
