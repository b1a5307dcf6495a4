"""Environments as launchers make them: those of Hydra 4.0, Open MPI 4.1 and Slurm 22.05 were taken from real jobs."""

import os
import shutil
import subprocess

import pytest

from training.launch.world import (
    World,
    check_placement,
    check_threads,
    default_environment,
    find_launcher,
    find_world,
    has_loopback_name,
    is_first_on_host,
)

DEEPSPEED = {
    "RANK": "7", "LOCAL_RANK": "1", "WORLD_SIZE": "12", "LOCAL_SIZE": "6", "CROSS_RANK": "1", "CROSS_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29511",
}  # fmt: skip
TORCHRUN = {
    "RANK": "7", "LOCAL_RANK": "1", "WORLD_SIZE": "12", "LOCAL_WORLD_SIZE": "6", "GROUP_RANK": "1",
    "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29511",
}  # fmt: skip
PALS = {
    "PALS_RANKID": "7", "PALS_NODEID": "1", "PALS_LOCAL_RANKID": "1", "PALS_LOCAL_SIZE": "6", "PALS_DEPTH": "16", "PALS_APID": "6ab0-1",
    "PMI_RANK": "7", "PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "6", "PMI_SIZE": "12", "PBS_JOBID": "17.pbs",
}  # fmt: skip
HYDRA = {"PMI_RANK": "7", "PMI_SIZE": "12", "PMI_FD": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "6"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "7", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_SIZE": "12", "OMPI_COMM_WORLD_LOCAL_SIZE": "6",
    "OMPI_UNIVERSE_SIZE": "12", "PMIX_RANK": "7", "PMIX_NAMESPACE": "339083265",
}  # fmt: skip
SLURM_BATCH = {
    "SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "node[017-018]", "SLURM_NODELIST": "node[017-018]", "SLURM_NTASKS": "12",
    "SLURM_TASKS_PER_NODE": "6(x2)", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
}  # fmt: skip
SRUN = {
    **SLURM_BATCH, "SLURM_PROCID": "7", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "12",
    "SLURM_STEP_NODELIST": "node[017-018]", "SLURM_STEP_TASKS_PER_NODE": "6(x2)",
}  # fmt: skip
SRUN_SHELL = {**SLURM_BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}
SRUN_SHELL_PMI2 = {**SRUN_SHELL, "PMI_RANK": "0", "PMI_SIZE": "1", "PMI_FD": "8"}
# The helper that Hydra and Open MPI start on each node of a Slurm job is itself a step of one task a node.
HELPER = {**SRUN, "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}

MET = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29511"}


@pytest.mark.parametrize(
    "environment",
    [
        DEEPSPEED,
        TORCHRUN,
        {**PALS, **MET},
        {**HYDRA, **MET},
        {**OPEN_MPI, **MET},
        {**SRUN, **MET},
        {**SRUN, **MET, "PMI_RANK": "7", "PMI_SIZE": "12", "PMI_FD": "8"},  # srun --mpi=pmi2
        {**HELPER, **HYDRA, **MET},
        {**HELPER, **OPEN_MPI, **MET},
        {**SRUN_SHELL, **DEEPSPEED},
        {"PMI_RANK": "7", "PMI_SIZE": "12", "PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "6", **MET},
        {"PMI_RANK": "7", "PMI_SIZE": "12", "LOCAL_WORLD_SIZE": "6", **MET},
    ],
    ids=[
        "deepspeed",
        "torchrun",
        "pals",
        "hydra",
        "openmpi",
        "srun",
        "srun-pmi2",
        "hydra-in-slurm",
        "openmpi-in-slurm",
        "deepspeed-in-slurm",
        "pmi",
        "pmi-bare",
    ],
)
def test_every_launchers_variables_say_the_same_place(environment):
    assert find_launcher(environment)
    assert find_world(environment) == World(rank=7, local_rank=1, size=12, local_size=6, master_addr="10.0.0.1", master_port=29511)


@pytest.mark.parametrize(
    "environment",
    [{}, {"PBS_JOBID": "17.pbs"}, SLURM_BATCH, SRUN_SHELL, SRUN_SHELL_PMI2],
    ids=["terminal", "pbs-script", "sbatch-script", "srun-pty", "srun-pty-pmi2"],
)
def test_a_job_script_is_no_rank_although_slurm_gives_it_a_rank(environment):
    assert not find_launcher(environment)
    with pytest.raises(ValueError, match=r"start with \./run_pretrain\.sh or deepspeed"):
        find_world(environment)


@pytest.mark.parametrize(
    "environment",
    [{}, SLURM_BATCH, SRUN_SHELL, SRUN_SHELL_PMI2, SRUN, HELPER | HYDRA, PALS, HYDRA, {"PMI_RANK": "7"}, OPEN_MPI, DEEPSPEED, TORCHRUN],
    ids=["terminal", "sbatch", "pty", "pty-pmi2", "srun", "hydra-in-slurm", "pals", "hydra", "pmi", "openmpi", "deepspeed", "torchrun"],
)
def test_the_bash_half_asks_the_same_question(environment, root, tmp_path):
    # A copy without .venv, whose Python only tells which of the two ways bash took.
    script = shutil.copy(root / "run_pretrain.sh", tmp_path)
    python = tmp_path / "python3"
    python.write_text(
        '#!/bin/sh\ncase "$*" in *make_venv.py*) echo made; exit 1;; *run_pretrain.sh*) echo went on;; esac\n', encoding="utf-8"
    )
    python.chmod(0o755)
    done = subprocess.run(
        [script], env={"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": str(python), **environment}, capture_output=True, text=True
    )
    assert done.stdout.split("\n")[0] == ("went on" if find_launcher(environment) else "made"), done.stderr


def test_a_python_that_is_named_and_is_none_is_not_replaced_by_another(root):
    done = subprocess.run([root / "run_pretrain.sh"], env={**os.environ, "PYTHON": "/nowhere/python"}, capture_output=True, text=True)
    said = "run_pretrain.sh: /nowhere/python is no Python 3.11 or 3.12. Install one, or set PYTHON to its path.\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_the_first_host_of_the_job_is_where_ranks_meet(tmp_path):
    nodes = tmp_path / "nodes"
    nodes.write_text("x1921c0s3b0n0.hsn\nx1921c0s3b0n0.hsn\nx1921c0s5b0n0.hsn\n", encoding="utf-8")
    assert find_world({**PALS, "PBS_NODEFILE": str(nodes)}).master_addr == "x1921c0s3b0n0.hsn"
    for listed, first in [
        ("node[017-020,033],other5", "node017"),
        ("a,b[1-2]", "a"),
        ("rack[1-2]-n[0,3].hpc,x", "rack1-n0.hpc"),
        ("gpu[8,9]-ib", "gpu8-ib"),
    ]:
        assert find_world({**SRUN, "SLURM_STEP_NODELIST": listed}).master_addr == first
    alone = {**HYDRA, "PMI_RANK": "1", "PMI_SIZE": "6"}
    assert find_world(alone).master_addr == "127.0.0.1"
    assert find_world(alone).master_port == 29500


def test_what_a_launcher_leaves_out_is_asked_of_the_job_script():
    # PALS with PMIx sets no PMI_SIZE, and the node file lies on the first node only.
    pals = {name: value for name, value in PALS.items() if not name.startswith("PMI")} | {"PBS_NODEFILE": "/var/spool/pbs/aux/none"}
    with pytest.raises(ValueError, match=r"PALS_RANKID is set .* PMI_SIZE or WORLD_SIZE is not: .* export WORLD_SIZE"):
        find_world(pals)
    with pytest.raises(ValueError, match=r"export MASTER_ADDR=.*head -n 1 \$PBS_NODEFILE"):
        find_world(pals | {"WORLD_SIZE": "12"})
    with pytest.raises(ValueError, match="export LOCAL_WORLD_SIZE"):
        find_world({"PMI_RANK": "7", "PMI_SIZE": "12"} | MET)
    with pytest.raises(ValueError, match="export LOCAL_WORLD_SIZE"):
        find_world({"RANK": "0", "WORLD_SIZE": "12", "LOCAL_SIZE": "0"} | MET)
    assert find_world(pals | {"WORLD_SIZE": "12"} | MET).size == 12
    assert find_world({"RANK": "0", "WORLD_SIZE": "1"}).local_size == 1


@pytest.mark.parametrize("port", ["abc", "29500x", "0", "-5", "65536", "٣"])
def test_a_port_that_is_none_is_refused_and_not_replaced(port):
    with pytest.raises(ValueError, match=rf"MASTER_PORT = {port} is not a port\. Give a number from 1 to 65535"):
        find_world({**DEEPSPEED, "MASTER_PORT": port})


def test_a_rank_that_is_not_below_their_number_is_refused():
    with pytest.raises(ValueError, match=r"RANK = 2, but the 2 ranks are numbered from 0 to 1\."):
        find_world({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_SIZE": "2"})


def test_an_empty_node_file_is_none(tmp_path):
    (tmp_path / "nodes").touch()
    with pytest.raises(ValueError, match=r"no MASTER_ADDR .* export MASTER_ADDR"):
        find_world({**PALS, "PBS_NODEFILE": str(tmp_path / "nodes")})


def test_a_number_of_threads_that_is_none_is_refused():
    for right in ({}, {"OMP_NUM_THREADS": "4"}, {"OMP_NUM_THREADS": "4,2"}, {"OMP_NUM_THREADS": " 04 "}):
        check_threads(right)
    for said in ("", "four", "0", "4,"):
        with pytest.raises(ValueError, match=f'OMP_NUM_THREADS = "{said}" is not a number of threads'):
            check_threads({"OMP_NUM_THREADS": said})


def test_one_rank_of_each_host_speaks_before_ranks_know_of_each_other():
    for environment in (DEEPSPEED, TORCHRUN, PALS, HYDRA, OPEN_MPI, SRUN):
        assert not is_first_on_host(environment)
    assert is_first_on_host({**PALS, "PALS_LOCAL_RANKID": "0"})
    assert is_first_on_host({})


def test_the_ranks_of_a_host_must_make_whole_pipelines():
    def world(local_size):
        return World(rank=0, local_rank=0, size=12, local_size=local_size, master_addr="a", master_port=1)

    check_placement(world(6), stages=6)
    check_placement(world(12), stages=6)
    with pytest.raises(ValueError, match=r"4 ranks on one host, but pipeline\.stages = 6: .* slots=6"):
        check_placement(world(4), stages=6)


def test_ranks_share_the_processors_they_may_use_and_a_bound_rank_keeps_its_own(monkeypatch):
    def threads(usable, shared):
        monkeypatch.setattr("os.cpu_count", lambda: 96)
        monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(usable)))
        return int(default_environment(6, shared)["OMP_NUM_THREADS"])

    assert threads(usable=96, shared=96) == 16
    assert threads(usable=12, shared=12) == 2  # a container, in which all ranks are started
    assert threads(usable=8, shared=96) == 8  # mpiexec --cpu-bind
    assert threads(usable=1, shared=1) == 1


def test_a_loopback_name_matters_to_jobs_of_several_hosts_on_cpus_that_are_told_no_interface(monkeypatch):
    def world(size):
        return World(rank=0, local_rank=0, size=size, local_size=2, master_addr="a", master_port=1)

    def resolves_to(address):
        monkeypatch.setattr("socket.getaddrinfo", lambda *asked: [(None, None, None, "", (address, 0))])

    resolves_to("127.0.1.1")
    assert has_loopback_name(world(4), {"DS_ACCELERATOR": "cpu"})
    assert not has_loopback_name(world(4), {"DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "eth0"})
    assert not has_loopback_name(world(2), {"DS_ACCELERATOR": "cpu"})
    resolves_to("10.0.0.1")
    assert not has_loopback_name(world(4), {"DS_ACCELERATOR": "cpu"})
