"""Texts, and one trained tokenizer of each kind."""

import pytest

from data.config import TokenizerConfig
from data.tokenizers import trainers
from tests.data.tokenizers.trained import KINDS


@pytest.fixture(scope="session")
def texts(verse):
    text = verse.read_text(encoding="utf-8")
    return [text[start : start + 1500] for start in range(0, len(text), 1500)]


@pytest.fixture(scope="session")
def folders(texts, tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    for kind, size in KINDS.items():
        trainers.train(texts, TokenizerConfig(kind=kind, vocab_size=size), root / kind)
    return root


@pytest.fixture(params=KINDS)
def folder(request, folders):
    return folders / request.param
