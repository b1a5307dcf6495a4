"""`python -m training.doctor`: what it finds on this machine, and what reports of hosts mean together."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from training import doctor
from training.diagnosis import cluster, machine
from training.diagnosis.findings import table
from training.supervision.hosts import Host, Pool


def test_this_machine_is_fit_for_the_shipped_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DS_ENV_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "none"))
    assert doctor.main(["--directory", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    for check in ("packages", "devices", "precision", "communication", "environment file", "disk"):
        assert f" {check} " in said
    assert "nothing to mend" in said


def test_a_device_that_is_not_there_is_a_finding_like_others(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "xpu")
    monkeypatch.setenv("DS_ENV_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "none"))
    assert doctor.main(["--directory", str(tmp_path / "runs")]) == 1
    said = capsys.readouterr().out
    assert "DS_ACCELERATOR = xpu" in said
    assert said.splitlines()[-1].startswith("1 of ")


def test_packages_that_come_before_those_of_the_environment_are_found(tmp_path, monkeypatch):
    (tmp_path / "modules/numpy").mkdir(parents=True)
    (tmp_path / "modules/other").mkdir()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.pathsep}{tmp_path / 'modules'}")
    assert machine.check_python_path().said == f"{tmp_path / 'modules/numpy'}: before .venv's"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert machine.check_python_path().state == "good"


@pytest.mark.parametrize(("text", "said"), [("A=1\n\nB=2", ":2 is blank"), ("A=1\n# why\n", ':2 is "# why"'), ("A=1\nB\n", ':2 is "B"')])
def test_a_line_that_ends_deepspeed_is_found_in_the_environment_file(tmp_path, text, said):
    path = tmp_path / "environment"
    path.write_text(text, encoding="utf-8")
    finding = machine.check_environment_files({"DS_ENV_FILE": str(path)})
    assert finding.state == "bad"
    assert said in finding.said


def test_an_environment_file_that_is_not_utf_8_is_found_and_ends_nothing(tmp_path):
    path = tmp_path / "environment"
    path.write_bytes(b"A=1\nB=caf\xe9\n")
    assert machine.check_environment_files({"DS_ENV_FILE": str(path)}).said.startswith(f"{path}:2 is not UTF-8")
    assert machine.names_passed_on({"DS_ENV_FILE": str(path)}) == {"A", "B"}


def test_a_value_of_several_lines_is_left_out_of_the_environment_file_and_named(tmp_path, monkeypatch):
    monkeypatch.setenv("CCL_LINES", "one\ntwo")
    said = doctor.write_environment_file(tmp_path / "environment")
    assert said.endswith("; left out, as a line holds one value: CCL_LINES")
    assert "CCL_LINES" not in (tmp_path / "environment").read_text(encoding="utf-8")


def test_an_environment_file_that_cannot_be_written_is_a_mistake(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DS_ENV_FILE", str(tmp_path / "nowhere" / "environment"))
    assert doctor.main(["--write-env"]) == 2
    assert "nowhere/environment cannot be written (No such file or directory)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ssh-port", "2222"], "--ssh-port: without effect without --hostfile"),
        (["--hostfile", "hostfiles/2nodes", "--mebibytes", "4"], "--mebibytes: without effect without --links"),
        (["--limit-seconds", "4"], "--limit-seconds: without effect without --links"),
        (["--master-port", "4"], "--master-port: without effect without --hostfile and --links"),
        (["--links", "a.json", "--master-addr", "alpha"], "--master-addr: without effect without --hostfile"),
        (["--write-env", "--hostfile", "hostfiles/2nodes"], "--hostfile: without effect: --write-env checks nothing"),
    ],
)
def test_an_option_that_would_say_nothing_is_refused(capsys, words, said):
    with pytest.raises(SystemExit):
        doctor.main(words)
    assert said in capsys.readouterr().err


def test_the_environment_file_in_the_home_folder_is_read_too_as_deepspeed_does(tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    (here / ".deepspeed_env").write_text("A=1", encoding="utf-8")
    assert machine.check_environment_files({}).state == "good"
    (home / ".deepspeed_env").write_text("A=1\n\n", encoding="utf-8")
    assert machine.check_environment_files({}).said.startswith(f"{home}/.deepspeed_env:2 is blank")


def test_the_environment_file_that_is_written_is_one_that_deepspeed_can_read(tmp_path, monkeypatch):
    monkeypatch.setenv("CCL_ATL_TRANSPORT", "ofi")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = tmp_path / "environment"
    doctor.write_environment_file(path)
    # As deepspeed.launcher.runner reads it.
    read = dict(line.split("=", maxsplit=1) for line in path.read_text(encoding="utf-8").split("\n"))
    assert read["CCL_ATL_TRANSPORT"] == "ofi"
    assert read["OMP_NUM_THREADS"] == "1"
    assert machine.check_environment_files({"DS_ENV_FILE": str(path)}).state == "good"
    with pytest.raises(ValueError, match="exists"):
        doctor.write_environment_file(path)


def test_a_lock_of_a_build_that_was_killed_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lock = tmp_path / "torch_extensions/py311_cpu/deepspeed_shm_comm/lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert machine.check_extension_locks().state == "good", "a build may be going on"
    os.utime(lock, (time.time() - 3600,) * 2)
    assert machine.check_extension_locks().state == "bad"


def test_a_folder_that_cannot_be_written_is_bad(tmp_path):
    assert machine.check_disk(tmp_path).state in ("good", "note")
    assert machine.check_disk(Path("/proc/no_such_folder")).state == "bad"


REPORT = {"loopback": False, "token": "t", "software": ["Python 3.11.7"], "devices": {"kind": "cpu", "count": 2}, "time": 1000.0}


def compare(**reports):
    """By check: what is said of hosts whose reports are like REPORT but for this."""
    hosts = [Host(name, 6) for name in reports]
    found = cluster.compare(hosts, {name: REPORT | changes for name, changes in reports.items()}, "t", (999.0, 1001.0))
    return {one.check: one for one in found}


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"token": ""}, "shared folder"),
        ({"time": 900.0}, "clocks"),
        ({"software": ["Python 3.12.1"]}, "software"),
        ({"devices": {"kind": "xpu", "count": 12}}, "slots"),
    ],
)
def test_what_differs_on_one_host_is_named_with_the_host(changes, check):
    finding = compare(alpha={}, beta=changes)[check]
    assert finding.state == "bad"
    assert "beta" in finding.said or check == "software"
    assert finding.fix
    assert "alpha" not in finding.said


@pytest.mark.parametrize("python", ["/bin/false", "/bin/true", "/bin/echo", "NUMBER"])
def test_a_host_that_answers_but_cannot_report_is_named(tmp_path, monkeypatch, python):
    if python == "NUMBER":
        python = str(tmp_path / "python")
        Path(python).write_text("#!/bin/sh\necho 5\n", encoding="utf-8")
        Path(python).chmod(0o755)
    monkeypatch.setattr("sys.executable", python)
    *_, finding = cluster.check_hosts(Pool((Host("localhost", 2),)), tmp_path)
    assert (finding.check, finding.said) == ("reports", "localhost: .venv does not run there")


def test_a_folder_of_runs_that_cannot_be_written_is_a_finding_like_others():
    *_, finding = cluster.check_hosts(Pool((Host("localhost", 2),)), Path("/proc/no_such_folder"))
    assert finding.state == "bad"
    assert finding.said.startswith("/proc/no_such_folder cannot be written here (")


def test_names_that_are_loopbacks_are_bad_on_cpus_of_two_hosts_unless_an_interface_is_passed_on(tmp_path, monkeypatch):
    passed_on = tmp_path / "environment"
    monkeypatch.setenv("DS_ENV_FILE", str(passed_on))
    loopback = {"loopback": True}
    on_devices = loopback | {"devices": {"kind": "xpu", "count": 6}}
    finding = compare(alpha={}, beta=loopback)["names"]
    assert (finding.state, finding.said) == ("note", "beta: the own name is a loopback address")
    assert "names" not in compare(beta=loopback)
    assert compare(alpha=loopback, beta=loopback)["names"].state == "bad"
    assert compare(alpha=on_devices, beta=on_devices)["names"].state == "note"
    passed_on.write_text("GLOO_SOCKET_IFNAME=eth0", encoding="utf-8")
    assert compare(alpha=loopback, beta=loopback)["names"].state == "note"


def test_this_host_reports_through_the_same_command_as_others(tmp_path):
    findings = cluster.check_hosts(Pool((Host("localhost", 2),)), tmp_path)
    assert [one.check for one in findings if one.state == "bad"] == [], table(findings)
    assert not list(tmp_path.iterdir())


def test_a_hostfile_that_is_not_there_is_a_mistake(capsys):
    assert doctor.main(["--hostfile", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
