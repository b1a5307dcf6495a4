"""Texts, stores and configurations that the tests of the preparation share."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import DataConfig, ValidationConfig
from data.prepare import prepare
from data.source_config import ChaptersConfig
from tests.data.stores import CHARACTERS, big_lines, large_config


def _write_as_megatron(prefix: Path, sequences: Sequence[Sequence[int]], documents: Sequence[int], code: int, dtype: Any) -> None:
    """A .bin/.idx pair as Megatron-LM and gpt-neox write it: by the published layout, byte for byte."""
    prefix.with_suffix(".bin").write_bytes(b"".join(np.array(ids, dtype=dtype).tobytes() for ids in sequences))
    sizes = [len(ids) for ids in sequences]
    pointers = np.cumsum([0, *sizes[:-1]], dtype=np.int64) * np.dtype(dtype).itemsize
    prefix.with_suffix(".idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, code, len(sizes), len(documents))
        + np.array(sizes, dtype=np.int32).tobytes()
        + pointers.tobytes()
        + np.array(documents, dtype=np.int64).tobytes()
    )


@pytest.fixture(scope="session")
def write_as_megatron() -> Callable[..., None]:
    return _write_as_megatron


@pytest.fixture
def make(verse: Path, tmp_path: Path) -> Callable[..., DataConfig]:
    """A configuration for the verse file, with changes."""

    def made(**changes: Any) -> DataConfig:
        values: dict[str, Any] = {
            "seq_length": 16,
            "tokenizer": CHARACTERS,
            "path": str(verse),
            "chapters": ChaptersConfig(),
            "validation": ValidationConfig(last_documents=2),
            "directory": str(tmp_path / "stores"),
        }
        return DataConfig(**{**values, **changes})

    return made


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """3.6 MB of documents, some of which are there twice."""
    path = tmp_path_factory.mktemp("large") / "documents.jsonl"
    big_lines(path, 1150)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines + lines[:50]), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def whole(large: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of `large_config`, made in one go by one process."""
    return prepare(large_config(large, tmp_path_factory.mktemp("whole")))
