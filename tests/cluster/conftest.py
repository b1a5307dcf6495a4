"""Two hosts, and a run that they can share: a tiny model, two stages, two replicas, 4 ranks and no other number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.hosts import Hosts


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Made anew for each file."""
    made = Hosts(tmp_path_factory.mktemp("hosts"))
    (made.folder / "environment").write_text("OMP_NUM_THREADS=1\n", encoding="utf-8")
    yield made
    made.close()


@pytest.fixture(scope="package")
def config(verse: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration's file; its token store is prepared. It trains until it is stopped."""
    from data.config import DataConfig
    from data.prepare import prepare
    from ds_configs import build_section

    folder = tmp_path_factory.mktemp("cluster")
    values: dict[str, Any] = {
        "inherits": [str(root / "ds_configs/parts/engine/pipeline2_zero1.json")],
        "run": {"seed": 7, "directory": str(folder / "runs")},
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "optimizer": {"params": {"lr": 0.01}},
        "scheduler": {"params": {"warmup_num_steps": 3}},
        "model": {"family": "gpt2", "vocab_size": 320, "max_seq_length": 32, "num_layers": 2, "hidden_size": 32, "num_heads": 2},
        "data": {
            "path": str(verse),
            "seq_length": 16,
            "directory": str(folder / "stores"),
            "chapters": {},
            "validation": {"last_documents": 2},
            "tokenizer": {"kind": "byte_bpe", "vocab_size": 320},
        },
        "training": {"steps": 1_000_000, "log_interval_steps": 1, "eval_interval_steps": 1_000_000, "save_interval_steps": 2},
    }
    prepare(build_section(DataConfig, values["data"], "data", "tiny"))
    path = folder / "tiny.json"
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    return path
