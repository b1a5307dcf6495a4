"""What goes wrong before a job of two hosts starts: the launchers' own words, our line, and what `training.doctor` says of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests import processes
from tests.cluster.hosts import Host, Hosts, needs_hosts
from tests.cluster.test_two_hosts import Job, gamma, lines_of
from training.diagnosis.links import MODULE

pytestmark = [
    pytest.mark.multinode,
    pytest.mark.distributed,
    pytest.mark.slow,
    needs_hosts,
]


@pytest.fixture
def doctor(hosts, root):
    """Start the doctor on the first host."""

    def start(hostfile: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
        variables = [f"{name}={value}" for name, value in environment.items()]
        words = ["--hostfile", str(hostfile), "--directory", str(hosts.folder / "runs"), *options]
        return processes.start(
            hosts.all[0].command("env", *variables, sys.executable, "-m", "training.doctor", *words, folder=root),
            env={**os.environ, "HOME": str(hosts.folder), "DS_ENV_FILE": str(hosts.folder / "environment")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, errors = process.communicate(timeout=processes.LIMIT_SECONDS)
    return process.returncode, output + errors


def wait_for(process: subprocess.Popen[str], beginning: str) -> None:
    assert process.stderr
    for line in process.stderr:
        if line.startswith(beginning):
            return
    raise AssertionError(f"no line {beginning}: {process.communicate()}")


def nothing_is_left(hosts: Hosts) -> None:
    processes.wait_until(lambda: not any(host.pids(f"{MODULE}|run_pretrain.sh") for host in hosts.all), "the end of all ranks")


@contextmanager
def other_file(host: Host, path: Path | str, text: str, folder: Path) -> Iterator[None]:
    """This host, and no other, sees another text under that path."""
    other = folder / f"other_{host.name}"
    other.write_text(text, encoding="utf-8")
    subprocess.run(host.command("mount", "--bind", str(other), str(path)), check=True)
    yield
    subprocess.run(host.command("umount", str(path)), check=True)


def loopback_name(host: Host, folder: Path) -> AbstractContextManager[None]:
    """The host's own name is what Debian's installer makes it."""
    text = host.read("/etc/hosts")
    own = next(line for line in text.splitlines() if line.endswith(host.name))
    return other_file(host, "/etc/hosts", text.replace(own, f"127.0.1.1 {host.name}"), folder)


def test_both_hosts_links_are_used_and_measured(hosts, doctor, config):
    code, said = end_of(doctor(hosts.hostfile((2, 2)), "--mebibytes", "16", "--links", str(config)))
    assert code == 0, said
    assert "4 started on alpha, beta" in said
    assert "2 of 2 stages, each on one host" in said
    for kind in ("next stage, inside a host", "next replica, between hosts", "sum over replicas"):
        assert kind in said
    nothing_is_left(hosts)


def test_a_stopped_rank_on_the_other_host_is_named_and_ended(hosts, doctor, config):
    process = doctor(hosts.hostfile((2, 2)), "--limit-seconds", "20", "--mebibytes", "256", "--links", str(config))
    wait_for(process, "links: meet: done")
    victim = hosts.all[1].pids(f"{MODULE} --local_rank=1")[-1]
    hosts.all[1].kill(signal.SIGSTOP, victim)
    code, said = end_of(process)
    assert code == 1, said
    assert "rank 3 on beta: silent for " in said
    nothing_is_left(hosts)


def test_a_cut_link_names_the_host_behind_it_whose_ranks_then_end_themselves(hosts, doctor, config):
    process = doctor(hosts.hostfile((2, 2)), "--limit-seconds", "15", "--mebibytes", "256", "--links", str(config))
    wait_for(process, "links: meet: done")
    hosts.all[1].set_link("down")
    try:
        code, said = end_of(process)
        assert code == 1, said
        assert "rank 2 on beta, rank 3 on beta: silent for " in said
        assert "beta: no answer when the ranks were to be ended" in said
        nothing_is_left(hosts)
    finally:
        hosts.all[1].set_link("up")


def test_names_that_resolve_to_loopback_are_refused_in_one_line(hosts, doctor, config, root):
    alpha, beta = hosts.all
    with loopback_name(alpha, hosts.folder), loopback_name(beta, hosts.folder):
        code, output = Job(hosts, root, hosts.hostfile((2, 2)), str(config), "run.name=mistake").finish()
        assert code == 2, output
        (line,) = lines_of(output)
        assert line.startswith("the own names of hosts alpha, beta resolve to loopback addresses")
        assert "GLOO_SOCKET_IFNAME" in line
        code, said = end_of(doctor(hosts.hostfile((2, 2)), "--limit-seconds", "15", "--links", str(config)))
    assert code == 1, said
    assert "alpha, beta: the own name is a loopback address" in said
    assert "bad   process group" in said, said
    nothing_is_left(hosts)


def test_a_port_in_use_is_said_by_the_run_and_by_the_doctor(hosts, doctor, config, root):
    hold = "import socket, time; door = socket.create_server(('', 29500)); print('open', flush=True); time.sleep(100000)"
    holder = processes.start(hosts.all[0].command(sys.executable, "-c", hold), stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "open\n"
        code, output = Job(hosts, root, hosts.hostfile((2, 2)), str(config), "run.name=mistake").finish()
        assert code == 2, output
        wanted = "host alpha: port 29500 cannot be opened for the ranks to meet (Address already in use)."
        assert any(line.startswith(wanted) for line in lines_of(output)), output
        code, said = end_of(doctor(hosts.hostfile((2, 2)), "--limit-seconds", "30", "--links", str(config)))
        assert code == 1, said
        assert wanted in said
    finally:
        processes.end(holder)
        subprocess.run(hosts.all[0].command("pkill", "-f", "create_server"), check=False)
    nothing_is_left(hosts)


def test_two_hosts_with_different_configurations_are_refused_in_one_line(hosts, config, root):
    other = config.read_text(encoding="utf-8").replace('"lr": 0.01', '"lr": 0.02')
    with other_file(hosts.all[1], config, other, hosts.folder):
        code, output = Job(hosts, root, hosts.hostfile((2, 2)), str(config), "run.name=mistake").finish()
    assert code == 2, output
    (line,) = lines_of(output)
    assert line.startswith("host beta: the configuration: ")
    nothing_is_left(hosts)


def test_a_second_host_that_is_not_there_is_named_by_the_doctor(hosts, doctor):
    code, output = end_of(doctor(gamma(hosts, first=False)))
    assert code == 1
    assert "gamma: no answer" in output


def test_what_the_launcher_ends_with_before_our_code_runs_is_explained_at_once(hosts, doctor, config, root):
    hostfile = gamma(hosts, first=True)
    code, output = Job(hosts, root, hostfile, str(config)).finish()
    assert (code, "host=gamma was not reachable via ssh" in output) == (1, True), output
    environment = hosts.folder / "environment"
    environment.write_text("A=1\n\nB=2\n", encoding="utf-8")
    try:
        code, output = Job(hosts, root, hosts.hostfile((2, 2)), str(config)).finish()
        assert (code, "not enough values to unpack" in output) == (1, True), output
        few = hosts.folder / "bin"
        few.mkdir()
        for name in ("ssh", "hostname", "true"):
            (few / name).symlink_to(f"/usr/bin/{name}")
        words = [Path(sys.executable).with_name("deepspeed"), "--hostfile", hosts.hostfile((2, 2)), "run_pretrain.sh", config]
        done = processes.run(hosts.all[0].command("env", f"PATH={few}", *map(str, words), folder=root))
        assert (done.returncode, "launcher 'pdsh' not installed" in done.stderr) == (1, True), done.stderr
        code, said = end_of(doctor(hostfile, "--links", str(config), PATH=str(few)))
    finally:
        environment.write_text("OMP_NUM_THREADS=1\n", encoding="utf-8")
    assert code == 1
    assert "gamma: no answer" in said
    assert f"{environment}:2 is blank: DeepSpeed ends with a ValueError" in said
    assert "not on PATH: DeepSpeed's launcher needs it" in said
    assert "not tried: first mend environment file, pdsh, ssh" in said
