"""`deepspeed --hostfile FILE run_pretrain.sh CONFIG dotted.key=value ...` over two hosts, through pdsh and ssh."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import processes
from tests.cluster.hosts import Hosts, Started, deepspeed, needs_hosts

pytestmark = [
    pytest.mark.multinode,
    pytest.mark.distributed,
    needs_hosts,
]

# As a person types them in single quotes; DeepSpeed and the remote shell are between them and the run.
OVERRIDES = {
    'run.description=two words, "quoted", it\'s (not) a; pattern: * & #1': 'two words, "quoted", it\'s (not) a; pattern: * & #1',
    'training.sample_prompt= "黛玉\\u0022\\u0024HOME\\u005c\\u0060\\u0025n*"': '黛玉"$HOME\\`%n*',
    "optimizer.params.betas=[0.9,0.98]": [0.9, 0.98],
}


class Job(Started):
    """One start of the launcher on the first host."""

    def __init__(self, hosts: Hosts, root: Path, hostfile: Path | str, *arguments: str) -> None:
        super().__init__(hosts, deepspeed(hostfile, *arguments), root, STAYS="here")

    def wait_for_step(self, folder: Path, step: int) -> None:
        """Until rank 0 has written that step's line."""
        metrics = folder / "metrics.jsonl"
        self.wait_for(lambda: metrics.exists() and f'"step": {step},' in metrics.read_text(encoding="utf-8"), f"step {step}")

    def wait_for_ranks_to_leave(self) -> None:
        """Until no rank is left on any host."""
        processes.wait_until(
            lambda: not any(host.pids("run_pretrain.sh --local_rank") for host in self.hosts.all), "the end of the ranks on all hosts"
        )


def lines_of(output: str) -> list[str]:
    """What our ranks said: each line once, without pdsh's host names and without DeepSpeed's and torch's own."""
    ours = [line.partition(": ")[2] for line in output.splitlines() if line.startswith(("alpha: ", "beta: "))]
    return [line for line in ours if not line.startswith(("[", "/")) and "return func" not in line] or output.splitlines()


@pytest.fixture(scope="module")
def killed(hosts, config, root):
    """A run of which one rank on the second host was killed after step 3."""
    (hosts.folder / "environment").write_text("TRAVELS=far and wide\nOMP_NUM_THREADS=1\n", encoding="utf-8")
    job = Job(hosts, root, hosts.hostfile((2, 2)), str(config), "run.name=two", *OVERRIDES)
    folder = config.parent / "runs" / "two"
    job.wait_for_step(folder, 3)
    victim = hosts.all[1].pids("run_pretrain.sh --local_rank=1")[-1]
    environment = hosts.all[1].read(f"/proc/{victim}/environ").split("\0")
    hosts.all[1].kill(signal.SIGKILL, victim)
    code, output = job.finish()
    job.wait_for_ranks_to_leave()
    return {"folder": folder, "code": code, "output": output, "environment": environment}


def test_each_pipelines_ranks_are_on_one_host(killed):
    assert "pipeline 0: ranks 0-1 on alpha" in killed["output"]
    assert "pipeline 1: ranks 2-3 on beta" in killed["output"]


def test_overrides_with_quotes_spaces_and_stars_arrive(killed):
    values = json.loads((killed["folder"] / "config.json").read_text(encoding="utf-8"))
    for override, wanted in OVERRIDES.items():
        found = values
        for key in override.partition("=")[0].split("."):
            found = found[key]
        assert found == wanted


def test_only_the_environment_file_travels(killed):
    assert "TRAVELS=far and wide" in killed["environment"]
    assert "OMP_NUM_THREADS=1" in killed["environment"]
    assert "STAYS=here" not in killed["environment"]
    assert "CROSS_SIZE=2" in killed["environment"]  # by which a rank knows that its overrides went through a remote shell


def test_a_killed_rank_on_the_other_host_ends_the_job_long_before_the_watchdog(killed):
    assert killed["code"] != 0
    assert "no progress for" not in killed["output"]  # Peers learn it from a closed connection.


def test_a_restart_resumes_and_a_stop_asked_of_the_launcher_is_saved(killed, hosts, config, root):
    published = sorted(path.parent.name for path in killed["folder"].glob("checkpoints/*/manifest.json"))
    step = int(published[-1].removeprefix("step"))
    assert step >= 2
    job = Job(hosts, root, hosts.hostfile((2, 2)), str(config), "run.name=two", "training.save_interval_steps=1000000", *OVERRIDES)
    job.wait_for_step(killed["folder"], step + 3)
    hosts.all[0].kill(signal.SIGTERM, hosts.all[0].pids("bin/deepspeed --hostfile")[-1])
    code, output = job.finish()
    assert code != 0
    assert f"resuming {killed['folder']} from step {step} of" in output
    job.wait_for_ranks_to_leave()  # They go on saving when the launcher has left.
    log = (killed["folder"] / "log.txt").read_text(encoding="utf-8").splitlines()
    stops = [line for line in log if "stopped at step " in line]
    stopped_at = int(stops[-1].partition("stopped at step ")[2].partition(",")[0])
    assert stopped_at >= step + 3
    assert (killed["folder"] / f"checkpoints/step{stopped_at:08d}/manifest.json").exists()


def test_slots_that_do_not_fit_the_stages_are_said_once_for_each_host_by_the_first_and_end_all(hosts, config, root):
    code, output = Job(hosts, root, hosts.hostfile((3, 1)), str(config), "run.name=mistake").finish()
    assert code == 2
    first, second = lines_of(output)
    assert first.startswith("3 ranks on one host, but pipeline.stages = 2")
    assert second.startswith("rank 3 on beta: 1 ranks on one host, but pipeline.stages = 2")


def test_a_hostfile_that_is_not_there_is_caught_although_deepspeed_starts_here(hosts, config, root):
    code, output = Job(hosts, root, hosts.folder / "no_such_file", str(config), "run.name=mistake").finish()
    assert code == 2
    assert "Unable to find hostfile" in output  # DeepSpeed's warning, and all it says
    assert "means 2 pipelines of 2 stages = 4 ranks, but" in output or "pipeline.stages = 2: whole pipelines need" in output


def gamma(hosts: Hosts, *, first: bool) -> Path:
    """A hostfile with a host that is not there."""
    lines = ["gamma slots=2\n", "alpha slots=2\n"]
    path = hosts.folder / f"gamma_{first}"
    path.write_text("".join(lines if first else reversed(lines)), encoding="utf-8")
    return path


@contextmanager
def unreachable(hosts: Hosts) -> Iterator[Path]:
    hosts.all[1].set_link("down")
    yield hosts.hostfile((2, 2))
    hosts.all[1].set_link("up")


@contextmanager
def unknown(hosts: Hosts) -> Iterator[Path]:
    yield gamma(hosts, first=False)


@contextmanager
def without_python(hosts: Hosts) -> Iterator[Path]:
    folder = str(Path(sys.executable).parent)
    subprocess.run(hosts.all[1].command("mount", "-t", "tmpfs", "tmpfs", folder), check=True)
    yield hosts.hostfile((2, 2))
    subprocess.run(hosts.all[1].command("umount", folder), check=True)


@pytest.mark.parametrize("lost", [unreachable, unknown, without_python], ids=lambda lost: lost.__name__)
def test_a_second_host_that_cannot_be_started_on_ends_the_start_soon(lost, hosts, config, root):
    started = time.monotonic()
    with lost(hosts) as hostfile:
        code, output = Job(hosts, root, hostfile, str(config), "run.name=mistake").finish()
    assert time.monotonic() - started < 120, "300 s is what ranks that are only late may take"
    assert "pdsh@alpha: alpha: ssh exited with exit code 2" in output
    assert code in (127, 255), "the launcher gives the largest of all codes, here the other host's"
    host = "gamma" if lost is unknown else "beta"
    wanted = f"host {host}: rank 2, 3 could not be started there: the launcher has no ssh to it."
    assert sum(line.startswith(wanted) for line in lines_of(output)) == 1, output
    assert not (config.parent / "runs" / "mistake").exists()


def test_a_host_that_accepts_no_ssh_ends_a_start_typed_on_a_login_node_soon(hosts, config, root):
    """Rank 0 is on beta and sees no launcher, but alpha, where that is, accepts ssh."""
    hostfile = hosts.folder / "from_login"
    hostfile.write_text("beta slots=2\nalpha slots=2\ngamma slots=2\n", encoding="utf-8")
    started = time.monotonic()
    code, output = Job(hosts, root, hostfile, str(config), "run.name=mistake", "train_batch_size=12").finish()
    assert time.monotonic() - started < 120, "300 s is what ranks that are only late may take"
    assert code == 255, output
    wanted = "beta: host gamma: rank 4, 5 could not be started there: the launcher has no ssh to it."
    assert sum(line.startswith(wanted) for line in output.splitlines()) == 1, output
    assert "pdsh@alpha: beta: ssh exited with exit code 2" in output


@pytest.mark.skipif(shutil.which("mpiexec.hydra") is None, reason="no mpiexec.hydra: apt-get install mpich")
def test_ranks_that_mpiexec_deals_out_in_turn_are_refused_as_pipelines_would_lie_across_hosts(hosts, config, root):
    deal = ["mpiexec.hydra", "-hosts", "alpha,beta", "-ppn", "1", "-n", "4", "./run_pretrain.sh", str(config), "run.name=mistake"]
    command = hosts.all[0].command("env", "MASTER_ADDR=alpha", "OMP_NUM_THREADS=1", *deal, folder=root)
    done = processes.run(command)
    assert done.returncode == 2
    assert done.stderr.startswith("ranks 0-1 are one pipeline, but they are on alpha, beta.")
    assert len(done.stderr.splitlines()) == 1
