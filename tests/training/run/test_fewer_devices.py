"""A run that loses devices goes on with those that are left: fewer pipelines, or pipelines of fewer stages, and the same batch.

Ranks on one machine; that a launcher starts them on fewer hosts is shown by tests/cluster/test_supervise.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import train_many

pytestmark = [pytest.mark.distributed, pytest.mark.slow]  # Twelve ranks: two cores take their time.

STEPS, HALF = 8, 4
BATCH = 8
# Stages and replicas before and after the loss. Embeddings are tied, as this family's are, but where the name says otherwise.
MOVES = {
    "two_hosts_to_one": ((6, 2), (6, 1)),
    "to_3": ((6, 1), (3, 1)),
    "to_2": ((6, 1), (2, 1)),
    "to_1": ((6, 1), (1, 1)),
    "untied_to_1": ((6, 1), (1, 1)),
}
WHOLE = {"whole_2": (6, 2), "whole_1": (6, 1), "untied_whole_1": (6, 1)}


@pytest.fixture(scope="module")
def runs(tiny_values: dict[str, Any], make_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, trained; `make_run` has prepared the text."""
    folder = tmp_path_factory.mktemp("fewer")
    values = json.loads(json.dumps(tiny_values))
    values["model"]["dropout"] = 0.0
    values["run"]["directory"] = str(folder)
    values["training"] |= {"steps": STEPS, "eval_interval_steps": 1000, "save_interval_steps": HALF, "sample_tokens": 0}
    values["scheduler"] = {"type": "WarmupLR", "params": {"warmup_num_steps": 3, "warmup_type": "linear", "warmup_max_lr": 0.01}}
    jobs = []

    def add(name: str, size: tuple[int, int], *overrides: str) -> None:
        config = folder / f"{name}.json"
        values["model"]["tie_embeddings"] = not name.startswith("untied")
        config.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
        stages, replicas = size
        jobs.append({"config": str(config), "overrides": [f"pipeline.stages={stages}", *overrides], "world": stages * replicas})

    for name, size in WHOLE.items():
        add(name, size)
    for name, (before, after) in MOVES.items():
        add(name, before, f"training.steps={HALF}")
        add(name, after)
    train_many(jobs)
    return folder


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["train/loss"] for record in map(json.loads, lines) if "train/loss" in record]


@pytest.mark.parametrize("name", MOVES)
def test_the_run_goes_on_with_the_same_batch_and_the_same_losses(runs: Path, name: str) -> None:
    before, after = MOVES[name]
    whole = f"{'untied_' if name.startswith('untied') else ''}whole_{before[1]}"
    undisturbed, moved = losses(runs / whole), losses(runs / name)
    assert len(undisturbed) == len(moved) == STEPS
    if before[1] == after[1]:
        assert moved == undisturbed, "the same replicas: nothing is summed in another order"
    else:
        assert moved == pytest.approx(undisturbed, abs=1e-3)
    manifest = json.loads((runs / name / f"checkpoints/step{STEPS:08d}/manifest.json").read_text(encoding="utf-8"))
    assert manifest["topology"] == {"pipe": after[0], "data": after[1]}
    assert manifest["consumed_samples"] == STEPS * BATCH
    assert undisturbed[-1] < undisturbed[0] - 0.15, "the losses fall, so equal ones mean something"
