"""Hostfiles: those made from a scheduler's list of nodes, and the shipped ones."""

import ast
import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader

import pytest

from tests import ROOT

FOLDER = ROOT / "hostfiles"
SCRIPT = FOLDER / "from_scheduler"


@pytest.fixture(scope="module")
def script():
    loader = SourceFileLoader("from_scheduler", str(SCRIPT))
    spec = spec_from_loader("from_scheduler", loader)
    assert spec
    module = module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader.exec_module(module)
    sys.dont_write_bytecode = writes
    return module


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script as a job starts it: as a program, with nothing else in its environment."""
    command = [str(SCRIPT), *arguments]
    return subprocess.run(command, env={"PATH": "/usr/bin:/bin", **environment}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("nodelist", "hosts"),
    [
        ("node1", ["node1"]),
        ("node[1-3]", ["node1", "node2", "node3"]),
        ("node[001-003,007]", ["node001", "node002", "node003", "node007"]),
        ("n[8-11]", ["n8", "n9", "n10", "n11"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("a,b[2,4]c,d", ["a", "b2c", "b4c", "d"]),
        ("rack[1-2]-n[0,3].hpc", ["rack1-n0.hpc", "rack1-n3.hpc", "rack2-n0.hpc", "rack2-n3.hpc"]),
    ],
)
def test_slurms_lists_are_expanded(script, nodelist, hosts):
    assert script.expand_nodelist(nodelist) == hosts


@pytest.mark.parametrize(
    "nodelist", ["node[1-3", "node1-3]", "node[3-1]", "node[a-b]", "node[]", "node[[1]]", "node[1-]", "a,,b", "; rm -rf"]
)
def test_a_list_that_cannot_be_understood_is_one_line_and_exit_code_2(nodelist):
    done = run(SLURM_JOB_NODELIST=nodelist)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"from_scheduler: .+\.\n", done.stderr)


def test_a_pbs_node_file_gives_each_host_once_in_its_order(tmp_path):
    nodefile = tmp_path / "nodes of job"
    nodefile.write_text("x2.hsn\nx2.hsn\nx1.hsn\nx2.hsn\n", encoding="utf-8")
    done = run("--slots", "12", PBS_NODEFILE=str(nodefile))
    assert (done.returncode, done.stdout, done.stderr) == (0, "x2.hsn slots=12\nx1.hsn slots=12\n", "")


def test_slurm_gives_six_slots_a_node_by_default():
    assert run(SLURM_JOB_NODELIST="node[1-2]").stdout == "node1 slots=6\nnode2 slots=6\n"


def test_without_a_job_with_two_schedulers_or_with_a_wrong_count_it_says_so(tmp_path):
    empty = tmp_path / "empty"
    empty.touch()
    assert "run this inside a job" in run().stderr
    assert "unset the one" in run(PBS_NODEFILE="a", SLURM_JOB_NODELIST="b").stderr
    assert "No such file" in run(PBS_NODEFILE=str(tmp_path / "none")).stderr
    assert "is empty" in run(PBS_NODEFILE=str(empty)).stderr
    assert run("--slots", "0", SLURM_JOB_NODELIST="a").returncode == 2


@pytest.mark.parametrize(("name", "hosts", "slots"), [("local", 1, 2), ("2nodes", 2, 6), ("32nodes", 32, 6)])
def test_the_shipped_hostfiles_are_what_deepspeed_reads(name, hosts, slots):
    lines = [line for line in (FOLDER / name).read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    entries = [re.fullmatch(r"(\S+)\s+slots=(\d+)", line) for line in lines]  # the pattern of DeepSpeed's launcher
    assert all(entries)
    assert len({entry.group(1) for entry in entries}) == len(lines) == hosts
    assert {int(entry.group(2)) for entry in entries} == {slots}


@pytest.mark.parametrize(
    "name", ["hostfiles/from_scheduler", *(f"training/{part}.py" for part in ("__init__", "launch/__init__", "launch/node_list"))]
)
def test_what_runs_on_the_nodes_own_python_is_python_3_6(name):
    ast.parse((FOLDER.parent / name).read_text(encoding="utf-8"), feature_version=(3, 6))
