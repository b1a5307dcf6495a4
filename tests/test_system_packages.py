"""A test skipped for want of a package fails in CI."""

import os
import sys

import pytest

from tests.system_packages import REMEDY, fail_for_a_missing_package

TEST = "tests/cluster/test_mpiexec.py::test_a_mistake_is_said_once_and_mpiexec_gives_exit_code_2[mpiexec.openmpi]"


@pytest.mark.processes
def test_a_missing_system_package_fails_in_ci_and_skips_elsewhere(root, tmp_path):
    from tests import processes

    without = {name: value for name, value in os.environ.items() if name != "CI"} | {"PATH": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TEST]
    elsewhere = processes.run(command, cwd=root, env=without)
    assert elsewhere.returncode == 0, elsewhere.stdout
    assert "1 skipped" in elsewhere.stdout
    ci = processes.run(command, cwd=root, env=without | {"CI": "true"})
    assert ci.returncode == 1
    assert "skipped although CI must have its packages" in ci.stdout
    assert REMEDY in ci.stdout


@pytest.mark.parametrize(("ci", "outcome"), [("true", "failed"), ("", "skipped")])
def test_a_file_of_tests_whose_python_package_is_missing_fails_in_ci_and_is_skipped_elsewhere(monkeypatch, ci, outcome):
    with pytest.raises(pytest.skip.Exception) as skip:
        pytest.importorskip("no_such_package")
    monkeypatch.setenv("CI", ci)
    report = pytest.CollectReport("tests/inference/test_gguf.py", "skipped", ("test_gguf.py", 20, f"Skipped: {skip.value}"), None)
    fail_for_a_missing_package(report)
    assert report.outcome == outcome
    other = pytest.CollectReport("tests/a.py", "skipped", ("a.py", 1, "Skipped: needs root"), None)
    fail_for_a_missing_package(other)
    assert other.outcome == "skipped"
