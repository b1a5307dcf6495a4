"""Workers of a preparation end with it, and nobody sees a trace of them."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import processes

PARTS = 12


@pytest.fixture
def config(tmp_path):
    """A preparation whose first step keeps two workers busy for a while."""
    draw = np.random.default_rng(0)
    (tmp_path / "texts").mkdir()
    for part in range(PARTS):
        lines = ["".join(map(chr, line)) for line in draw.integers(0x4E00, 0x5E00, (20_000, 60))]
        (tmp_path / f"texts/{part}.txt").write_text("\n".join(lines), encoding="utf-8")
    data = {"path": str(tmp_path / "texts"), "seq_length": 64, "directory": str(tmp_path / "stores"), "num_workers": 2, "shard_mib": 1}
    data |= {"tokenizer": {"kind": "characters"}, "validation": {"last_documents": 1}}
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"data": data}), encoding="utf-8")
    return path


def is_deaf_to_ctrl_c(process):
    """Whether SIGINT is blocked or ignored there."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return any(int(mask, 16) & 1 << signal.SIGINT - 1 for mask in re.findall(r"Sig(?:Blk|Ign):\s*(\w+)", status))


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_is_left_of_a_preparation_that_is_ended(config, root, number):
    process = processes.start([sys.executable, "-m", "data.prepare", config], cwd=root, stdout=-1, stderr=-2, text=True)

    def busy():
        # Python's fork server and its helper are there too.
        written = any(path.is_file() for path in (config.parent / "stores").glob(".*.work/*/*"))
        return (written and len(processes.descendants(process.pid)) >= 4) or process.poll() is not None

    processes.wait_until(busy, "two workers that write")
    workers = processes.descendants(process.pid)
    assert len(workers) >= 4
    assert all(map(is_deaf_to_ctrl_c, workers)), "from birth: a worker that is still starting would write a traceback"
    assert not is_deaf_to_ctrl_c(process.pid)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # As the terminal does.
    else:
        os.kill(process.pid, number)
    code = process.wait()
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    processes.wait_until(lambda: not any(map(processes.is_running, workers)), "the end of the workers")
    output = process.stdout.read()
    process.stdout.close()
    assert "Traceback" not in output
    assert ("Start again to go on from here" in output) == (number != signal.SIGKILL)
