"""How many processors a container's limits leave, in the files of both versions of Linux' control groups."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from model.hardware import processors


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Write the line of /proc/self/cgroup, and files below the mount ("__" stands for a slash)."""
    monkeypatch.setattr(processors, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(processors, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)))

    def write(line, **files):
        (tmp_path / "own").write_text(f"7:memory:/elsewhere\n{line}\n", encoding="utf-8")
        for name, text in files.items():
            file = tmp_path / name.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n", encoding="utf-8")

    return write


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/", {"cpu.max": "400000 100000"}, 4),
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "20000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, 64),
        ("0::/job/step", {"job__cpu.max": "800000 100000", "job__step__cpu.max": "max 100000"}, 8),
        ("0::/job/step", {"job__cpu.max": "800000 100000", "job__step__cpu.max": "300000 100000"}, 3),
        ("0::/../outside", {"cpu.max": "500000 100000"}, 5),
        ("0::/", {}, 64),
        ("4:cpu,cpuacct:/docker/a", {"cpu,cpuacct__cpu.cfs_quota_us": "600000", "cpu,cpuacct__cpu.cfs_period_us": "100000"}, 6),
        ("4:cpu:/a", {"cpu__a__cpu.cfs_quota_us": "-1", "cpu__a__cpu.cfs_period_us": "100000"}, 64),
    ],
)
def test_a_limit_of_time_counts_as_processors(group, line, files, expected):
    group(line, **files)
    assert processors.shared_processors() == processors.usable_processors() == expected


def test_a_process_that_is_bound_has_fewer_than_all_share(group, monkeypatch):
    group("0::/", **{"cpu.max": "1600000 100000"})
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {2, 3})
    assert (processors.usable_processors(), processors.shared_processors()) == (2, 16)


@pytest.mark.parametrize(("limit", "processes", "threads"), [("max 1", 1, None), ("400000 100000", 1, "4"), ("400000 100000", 2, "2")])
def test_threads_are_as_many_as_the_limit(group, monkeypatch, limit, processes, threads):
    group("0::/", **{"cpu.max": limit})
    monkeypatch.setattr(os, "environ", {})
    processors.set_threads(processes)
    assert os.environ.get("OMP_NUM_THREADS") == threads


@pytest.mark.processes
def test_a_limit_that_this_machine_sets_is_found(root):
    groups = Path("/sys/fs/cgroup/cpu")  # Version 1; a group of version 2 gets `cpu.max` only where its parent hands the controller on.
    folder = groups / f"test-{uuid.uuid4().hex}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here ({error.strerror})")
    try:
        (folder / "cpu.cfs_quota_us").write_text("100000", encoding="utf-8")
        inside = f"echo $$ > {folder}/cgroup.procs && exec {sys.executable} -c '{ASK}'"
        said = subprocess.run(["sh", "-c", inside], cwd=root, capture_output=True, text=True, check=True)
        assert said.stdout == "1\n"
    finally:
        folder.rmdir()


ASK = "from model.hardware.processors import usable_processors; print(usable_processors())"
