"""`mpiexec -n 2 ./run_pretrain.sh CONFIG`: the same file as bash, one rank each, with the MPI libraries that are installed."""

import os
import shutil

import pytest

from tests import processes
from training.launch.local import free_port

pytestmark = pytest.mark.distributed

# Open MPI refuses root and more ranks than cores unless told otherwise.
COMMANDS = {"mpiexec.hydra": [], "mpiexec.openmpi": ["--allow-run-as-root", "--oversubscribe"]}


@pytest.fixture
def mpiexec(root, config):
    def start(program, *arguments):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}: apt-get install {'mpich' if 'hydra' in program else 'openmpi-bin'}")
        command = [program, *COMMANDS[program], "-n", "2", "./run_pretrain.sh", str(config), *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())}
        done = processes.run(command, cwd=root, env=environment)
        return done.returncode, done.stderr

    return start


def test_a_run_started_by_mpiexec_trains(mpiexec, config):
    one_replica = ["gradient_accumulation_steps=null", "run.name=mpiexec"]
    code, errors = mpiexec("mpiexec.hydra", *one_replica, "training.steps=2")
    assert code == 0, errors
    assert "pipeline 0: ranks 0-1 on" in errors
    assert "step 2/2 | loss" in errors
    assert (config.parent / "runs/mpiexec/checkpoints/step00000002/manifest.json").exists()


@pytest.mark.parametrize("program", COMMANDS)
def test_a_mistake_is_said_once_and_mpiexec_gives_exit_code_2(mpiexec, program):
    code, errors = mpiexec(program, "training.stepz=2")
    assert code == 2
    assert errors.count('unknown key "training.stepz". Did you mean "steps"?') == 1
    assert "Traceback" not in errors
