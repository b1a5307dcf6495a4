"""`python -m training.doctor --links`: real ranks that talk, a rank that stops in between, and what reports mean together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests import processes
from training import doctor
from training.diagnosis.link_rank import MARK
from training.diagnosis.link_reports import Reports, explain_error, explain_stand_still, speeds
from training.diagnosis.links import MODULE
from training.supervision import leftovers

# Two pipelines of one stage each on the CPU, so that both kinds of exchange happen with few processes.
RUN = ["ds_configs/quickstart.json", "run.name=links", "bf16.enabled=true"]
FOUR_RANKS = ["alpha", "alpha", "beta", "beta"]


def start_doctor(root: Path, tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "training.doctor", "--directory", str(tmp_path / "runs"), *options, "--links", *RUN]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ENV_FILE": str(tmp_path / "none")}
    return processes.start(command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.distributed
@pytest.mark.alone
def test_ranks_on_this_machine_talk_and_the_speed_of_their_link_is_shown(root, tmp_path):
    process = start_doctor(root, tmp_path, "--mebibytes", "4")
    output, errors = process.communicate(timeout=processes.LIMIT_SECONDS)
    assert process.returncode == 0, output + errors
    for check in ("ranks", "pipelines", "meeting", "process group", "ring", "all_reduce"):
        assert f"good  {check} " in output, output
    assert "send and receive in bf16" in output
    assert "next stage, inside a host" in output[output.index("median GB/s") :]
    assert leftovers.find([], root, MODULE) == []


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.alone
@pytest.mark.parametrize("moment", ["start", "all_reduce"])
def test_a_rank_that_is_stopped_is_named_and_nothing_is_left_running(root, tmp_path, moment):
    process = start_doctor(root, tmp_path, "--limit-seconds", "20", "--mebibytes", "512")
    assert process.stderr
    for line in process.stderr:
        if line.startswith(f"links: {moment}: done"):
            break
    ranks = [rank for rank in leftovers.find([], root, MODULE) if "--local_rank=1" in processes.command_line(rank).split()]
    os.kill(ranks[-1], signal.SIGSTOP)
    output, errors = process.communicate(timeout=processes.LIMIT_SECONDS)
    assert process.returncode == 1, output + errors
    (said,) = [line for line in output.splitlines() if line.startswith("bad ")]
    assert "rank 1 on" in said or "ranks (1" in said, output
    assert leftovers.find([], root, MODULE) == []


def test_a_mistake_in_the_configuration_is_one_line_and_nothing_is_started(capsys):
    assert doctor.main(["--links", *RUN, "pipeline.stagez=2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'unknown key "pipeline.stagez". Did you mean "stages"?' in line


def test_slots_over_which_a_pipeline_would_lie_across_hosts_are_refused_before_any_rank(tmp_path, capsys):
    hostfile = tmp_path / "hosts"
    hostfile.write_text("alpha slots=3\nbeta slots=1\n", encoding="utf-8")
    shape = ["pipeline.stages=2", "gradient_accumulation_steps=null"]
    assert doctor.main(["--hostfile", str(hostfile), "--links", *RUN, *shape]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("alpha slots=3, but pipeline.stages = 2: a pipeline would lie across hosts.")


def told(*said: Mapping[str, object], hosts: list[str] = FOUR_RANKS) -> Reports:
    """Reports a second apart, as pdsh passes them on."""
    reports = Reports(hosts, now=0.0)
    for second, one in enumerate(said, 1):
        assert reports.take(f"host: {MARK}{json.dumps(one)}\n", float(second))
    return reports


def test_other_lines_of_the_launcher_and_broken_ones_are_no_reports():
    reports = told()
    assert not reports.take("alpha: [INFO] [launch.py] cmd = ...", 1.0)
    assert not reports.take(MARK + '{"rank": 1, "st', 1.0)
    assert not reports.take(MARK + '{"rank": 17, "beat": true}', 1.0)


def test_a_rank_that_is_not_heard_of_is_named_rather_than_those_that_wait_for_it():
    said = [{"rank": rank, "step": "ring", "host": host} for rank, host in enumerate(FOUR_RANKS)]
    alive = [{"rank": rank, "beat": True} for rank in (0, 1, 3)]
    reports = told(*said, *alive)
    finding = explain_stand_still(reports, seconds=4.0, now=7.0)
    assert finding.said.startswith("rank 2 on beta: silent for 4 s, last in the ring")
    assert finding.state == "bad"
    assert "is the process stopped" in finding.fix


def test_a_rank_that_never_came_is_named():
    finding = explain_stand_still(told({"rank": 0, "step": "meet"}, {"rank": 1, "step": "meet"}), seconds=60.0, now=3.0)
    assert finding.said == "rank 2 on beta, rank 3 on beta: never came"


def test_where_all_are_alive_it_is_said_who_waits_for_whom():
    said = [{"rank": rank, "step": "all_reduce", "host": FOUR_RANKS[rank]} for rank in (0, 1, 3)]
    reports = told(*[{"rank": rank, "step": "ring"} for rank in range(4)], {"rank": 2, "waits": [1]}, *said)
    finding = explain_stand_still(reports, seconds=60.0, now=9.0)
    assert "rank 2 on beta waits for rank 1 on alpha" in finding.said
    assert "rank 0" not in finding.said


def test_of_several_errors_the_first_is_told_with_its_rank_and_step():
    reports = told({"rank": 3, "step": "all_reduce"}, {"rank": 3, "error": "Connection closed"}, {"rank": 0, "error": "so did I"})
    assert explain_error(reports).said == "rank 3 on beta, in the all_reduce: Connection closed  (1 more errors followed)"


def test_a_link_slower_than_half_of_its_kind_is_named():
    kind = "next stage, inside a host"
    told_speeds = enumerate([9e9, 8e9, 3e9, 8e9])
    reports = told(*[{"rank": rank, "peer": rank ^ 1, "kind": kind, "speed": speed} for rank, speed in told_speeds])
    (slow,), table = speeds(reports)
    assert slow.said == "next stage, inside a host: rank 2 on beta, rank 3 on beta: 3.00 GB/s where others have 8.00"
    assert "3.00  ranks 2 and 3" in table
