"""The quickstart, trained whole as a person trains it: once for all the slow tests that need a model which has learnt something."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import processes

Person = Callable[..., "subprocess.CompletedProcess[str]"]
# Of the tests that use it: the novel may have to be fetched, and two ranks train for minutes.
MARKS = (pytest.mark.slow, pytest.mark.network, pytest.mark.distributed)


@pytest.fixture(scope="session")
def person(root: Path) -> Person:
    """Run the script from the shell; the environment that runs these tests serves as its `.venv`."""
    if not (root / ".venv/bin/python").exists():
        pytest.skip("no .venv in the checkout; `make test` makes it")
    shell = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "DS_ACCELERATOR", "OMP_NUM_THREADS")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return processes.run(["./run_pretrain.sh", *arguments], cwd=root, env=shell)

    return run


@pytest.fixture(scope="session")
def quickstart(person: Person, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the finished run. Do not change what training left there."""
    folder = tmp_path_factory.mktemp("trained")
    done = person("ds_configs/quickstart.json", f"run.directory={folder}")
    assert done.returncode == 0, done.stderr
    return folder / "quickstart"
