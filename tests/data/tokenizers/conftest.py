"""Texts, and one trained tokenizer of each kind."""

from pathlib import Path

import pytest

from data.config import TokenizerConfig
from data.tokenizers import trainers
from ds_configs import build_section
from tests.data.tokenizers.trained import KINDS


@pytest.fixture(scope="session")
def texts(verse: Path) -> list[str]:
    text = verse.read_text(encoding="utf-8")
    return [text[start : start + 1500] for start in range(0, len(text), 1500)]


@pytest.fixture(scope="session")
def folders(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tokenizers")
    for kind, size in KINDS.items():
        trainers.train(texts, build_section(TokenizerConfig, {"kind": kind, "vocab_size": size}, "tokenizer", "test"), root / kind)
    return root


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, folders: Path) -> Path:
    return folders / str(request.param)
