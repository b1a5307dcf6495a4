"""A store of verse and a model for it, as an export leaves it: shared by all tests of the package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data import prepare
from data.batches.datasets import Datasets
from data.config import DataConfig, TokenizerConfig, ValidationConfig
from data.store.identity import text_of
from data.store.token_store import read_manifest

SEQ_LENGTH = 64


def data_config(verse: Path, directory: Path, **changes: Any) -> DataConfig:
    values: dict[str, Any] = {
        "seq_length": SEQ_LENGTH,
        "tokenizer": TokenizerConfig(kind="byte_bpe", vocab_size=300),
        "path": str(verse),
        "text_documents": "line",
        "clean": (),
        "validation": ValidationConfig(last_documents=4),
        "directory": str(directory),
    }
    return DataConfig(**{**values, **changes})


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory, verse: Path) -> DataConfig:
    return data_config(verse, tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="session")
def store(config: DataConfig) -> Path:
    return prepare.prepare(config)


@pytest.fixture(scope="session")
def datasets(config: DataConfig, store: Path) -> Datasets:
    return Datasets(store, read_manifest(store), config, seed=1)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    """A GPT-2 with random weights and the store's tokenizer, with the files of an export. Do not change it."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("hf") / "model"
    torch.manual_seed(1)
    sizes = {"vocab_size": 307, "n_positions": SEQ_LENGTH, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    shutil.copytree(store / "tokenizer", folder, dirs_exist_ok=True)
    record = {"checkpoint": "step00000005", "step": 5, "fingerprint": "f5", "text": text_of(read_manifest(store))}
    rows = {"seq_length": SEQ_LENGTH, "windows": "stream", "add_bos": False, "add_eos": True}
    (folder / "export.json").write_text(json.dumps({**record, "rows": rows}), encoding="utf-8")
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to do with as one likes."""
    return Path(shutil.copytree(exported, tmp_path / "model"))
