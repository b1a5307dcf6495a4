"""`torchrun --nproc_per_node 2 run_pretrain.sh CONFIG`: its agent holds the port of the process group before the ranks start."""

import os
import sys
from pathlib import Path

import pytest

from tests import processes
from training.launch.local import free_port

pytestmark = pytest.mark.distributed


def torchrun(root, config, *arguments):
    program = str(Path(sys.executable).with_name("torchrun"))
    command = [program, "--nproc_per_node", "2", "--master_port", str(free_port()), "run_pretrain.sh", str(config), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = processes.run(command, cwd=root, env=environment)
    return done.returncode, done.stderr


def test_a_run_started_by_torchrun_trains(root, config):
    code, errors = torchrun(root, config, "gradient_accumulation_steps=null", "run.name=torchrun", "training.steps=2")
    assert code == 0, errors
    assert "pipeline 0: ranks 0-1 on" in errors
    assert (config.parent / "runs/torchrun/checkpoints/step00000002/manifest.json").exists()


def test_a_mistake_is_said_once(root, config):
    code, errors = torchrun(root, config, "training.stepz=2")
    assert code != 0  # torchrun's own: 1
    assert errors.count('unknown key "training.stepz". Did you mean "steps"?') == 1
