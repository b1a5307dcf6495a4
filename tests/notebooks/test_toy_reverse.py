"""The notebook runs as it is, training included: short by default, whole among the slow tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.distributed

SHORT = [
    "training.steps=60",
    "training.eval_interval_steps=30",
    "training.sample_prompt=null",
    "training.sample_tokens=0",
    "data.reverse.num_samples=4000",
    "data.reverse.max_length=6",
]


def execute(root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]) -> dict[str, list[Any]]:
    """Run the notebook with its run and its store in a folder; all texts and pictures it shows."""
    ours = ["run.name=notebook", f"run.directory={folder / 'runs'}", f"data.directory={folder / 'stores'}"]
    monkeypatch.setenv("TOY_REVERSE_OVERRIDES", " ".join(ours + overrides))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(folder / name))
    notebook = nbformat.read(root / "notebooks/toy_reverse.ipynb", as_version=4)
    NotebookClient(notebook, timeout=3000, kernel_name="python3", resources={"metadata": {"path": str(root / "notebooks")}}).execute()
    return shown(notebook)


def shown(notebook: nbformat.NotebookNode) -> dict[str, list[Any]]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    return {
        "texts": [output["text"] for output in outputs if output.get("name") == "stdout"],
        "pictures": [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})],
    }


def exact_share(texts: list[str]) -> float:
    (right, total), *_ = re.findall(r"(\d+) of (\d+) unseen strings exactly reversed", "\n".join(texts))
    return int(right) / int(total)


def test_the_notebook_trains_a_short_run_and_draws_its_three_pictures(root, tmp_path, monkeypatch):
    seen = execute(root, tmp_path, monkeypatch, SHORT)
    assert len(seen["pictures"]) == 3
    assert exact_share(seen["texts"]) < 0.5, "60 steps do not teach it: a score that looks at the answers would show here"
    lines = (tmp_path / "runs/notebook/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [record["train/loss"] for record in map(json.loads, lines) if "train/loss" in record]
    assert len(losses) == 60
    assert losses[-1] < losses[0] - 1


def test_the_notebook_is_kept_with_what_it_showed(root):
    text = (root / "notebooks/toy_reverse.ipynb").read_text(encoding="utf-8")
    seen = shown(nbformat.reads(text, as_version=4))
    assert len(seen["pictures"]) == 3
    assert exact_share(seen["texts"]) >= 0.99
    assert str(root) not in text, "nothing of the machine it ran on"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_toy_reverse_reverses_99_of_100_unseen_strings(root, tmp_path, monkeypatch):
    seen = execute(root, tmp_path, monkeypatch, [])
    assert exact_share(seen["texts"]) >= 0.99
