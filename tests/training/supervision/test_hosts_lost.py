"""A supervisor whose hosts go away between two starts: `deepspeed` and `ssh` are stand-ins, the supervisor is real."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import processes

pytestmark = pytest.mark.processes

# The first start fails, and with it all hosts are gone.
DEEPSPEED = """#!/bin/sh
[ -e "$STATE/ran" ] && exit 0
touch "$STATE/ran" "$STATE/down"
exit 1
"""
SSH = """#!/bin/sh
[ ! -e "$STATE/down" ]
"""


class Supervised:
    """A job on two hosts under a supervisor."""

    def __init__(self, folder, root):
        self.folder = folder
        for name, text in (("deepspeed", DEEPSPEED), ("ssh", SSH)):
            (folder / name).write_text(text, encoding="utf-8")
            (folder / name).chmod(0o755)
        (folder / "hostfile").write_text("b slots=2\nc slots=2\n", encoding="utf-8")
        job = ["deepspeed", "--hostfile", folder / "hostfile", "run_pretrain.sh", "ds_configs/quickstart.json"]
        changes = [f"run.directory={folder}/runs", "gradient_accumulation_steps=null"]
        self.process = processes.start(
            [sys.executable, "-m", "training.supervise", "--delay-seconds", "1", "--", *job, *changes],
            cwd=root,
            env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "STATE": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self):
        """Exit code, and what it said happened: the log goes with the folder of a run that never came to be."""
        output, _ = self.process.communicate(timeout=processes.LIMIT_SECONDS)
        return self.process.returncode, [line.split(": ")[1] for line in output.splitlines() if line.startswith("supervise: ")]

    def has_waited(self, times):
        path = self.folder / "runs/quickstart/supervisor/log.jsonl"
        return path.exists() and path.read_text(encoding="utf-8").count('"waiting"') == times


@pytest.mark.parametrize("back", [True, False])
def test_while_no_host_answers_it_waits_and_asks_again_as_often_as_it_would_try(tmp_path, root, back):
    supervised = Supervised(tmp_path, root)
    if back:
        processes.wait_until(lambda: supervised.has_waited(2) or supervised.process.poll() is not None, "the second wait")
        (tmp_path / "down").unlink()
    code, events = supervised.finish()
    end = ["started", "finished"] if back else ["hosts", "gave up"]
    assert events == ["started", "failed", "waiting", "hosts", "waiting", *end]
    assert code == (0 if back else 2)
