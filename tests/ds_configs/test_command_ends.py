"""How commands end: by a mistake, by Ctrl-C, and when nobody reads on."""

import os
import signal
import sys
import time

import pytest

from ds_configs.commands import command
from tests import ROOT, processes


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a.json: no such key."), "name: a.json: no such key.\n"),
        (FileNotFoundError(2, "No such file or directory", "a.json"), "name: a.json: No such file or directory.\n"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(error, line, capsys):
    @command("name")
    def main(arguments):
        raise error

    assert main([]) == 2
    assert capsys.readouterr().err == line


def test_ctrl_c_ends_a_command_with_130_and_without_a_trace(capsys):
    @command()
    def main(arguments):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
        return 0

    assert main([]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.processes
def test_a_command_whose_output_is_closed_from_the_beginning_ends_as_it_would():
    done = processes.run(["bash", "-c", '"$0" -m ds_configs show ds_configs/quickstart.json >&-', sys.executable], cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.processes
@pytest.mark.parametrize(
    "words",
    [
        "ds_configs show ds_configs/quickstart.json",
        "training.doctor",
        "training.plan ds_configs/hongloumeng_500m.json --device max1550",
    ],
)
def test_a_reader_that_has_had_enough_ends_a_command_with_141_and_without_a_trace(words):
    # `true` is gone before anything is written.
    done = processes.run(["bash", "-c", f'"$0" -m {words} | true; exit ${{PIPESTATUS[0]}}', sys.executable], cwd=ROOT)
    assert (done.returncode, done.stderr) == (141, "")
