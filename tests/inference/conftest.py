"""One run folder for all tests of the package: saved by DeepSpeed on two stages x two replicas, bf16 with fp32 masters, tied."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data.config import TokenizerConfig
from data.tokenizers import trainers
from tests.ranks import run_script

STEPS = (3, 5)
CONFIG: dict[str, Any] = {
    "run": {"name": "tiny", "description": "Saved for a test."},
    # Odd sizes: no weight fills a replica's piece, so every piece has fragments and padding. 7 ids are no token's.
    "model": {
        "family": "gpt2",
        "vocab_size": 307,
        "max_seq_length": 64,
        "num_layers": 3,
        "hidden_size": 18,
        "num_heads": 2,
        "init_std": 0.3,
    },
    "data": {"path": "verse.txt", "seq_length": 64, "tokenizer": {"kind": "byte_bpe", "vocab_size": 300}},
    "training": {"steps": 5, "save_interval_steps": 2},
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "zero_optimization": {"stage": 1},
    "optimizer": {"type": "AdamW", "params": {"torch_adam": True, "lr": 1e-3, "weight_decay": 0.1}},
    "pipeline": {"stages": 2},
    "train_batch_size": 4,
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 1,
}


def save_run(folder: Path, verse: Path, steps: tuple[int, ...], changes: dict[str, Any]) -> Path:
    """A run folder as training leaves it: config.json, tokenizer/, checkpoints/."""
    folder.mkdir(parents=True)
    values = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(values | {"provenance": {"git_commit": "0123abc"}}), encoding="utf-8")
    settings = TokenizerConfig(kind="byte_bpe", vocab_size=300)
    trainers.train([verse.read_text(encoding="utf-8")], settings, folder / "tokenizer")
    run_script("tests.inference.save_run", folder, *steps)
    return folder


@pytest.fixture(scope="session")
def saved_run(tmp_path_factory: pytest.TempPathFactory, verse: Path) -> Path:
    """Do not change it: use `run`."""
    return save_run(tmp_path_factory.mktemp("runs") / "tiny", verse, STEPS, {})


@pytest.fixture
def run(saved_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to do with as one likes."""
    return Path(shutil.copytree(saved_run, tmp_path / "runs" / "tiny"))
