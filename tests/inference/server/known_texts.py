"""A model that knows three texts by heart, one of which is in the training text of the store that it names, one in part, one not at all.

So it is known before what a page has to mark in each.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from data import prepare
from data.config import DataConfig, TokenizerConfig, ValidationConfig
from data.store.identity import text_of
from data.store.token_store import read_manifest
from data.tokenizers import tokenizer_folder
from tests.inference.by_heart import learn_by_heart

POSITIONS = 256
# From 千字文. The rare character is one of those that JavaScript counts as two.
OWN = "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。寒来暑往，秋收冬藏。闰余成岁，律吕调阳。"
BEFORE, BEHIND = "云腾致雨，露结为霜。𠮷金生丽水", "玉出昆冈。剑号巨阙，珠称夜光。"
PROMPT_CHARS = 5


@dataclass(frozen=True)
class Known:
    """A text that the model writes when it is given the first characters; `copied` is what of the rest is in the training text."""

    prompt: str
    rest: str
    copied: str
    source: str = ""
    """The beginning of the document that has it."""


@dataclass(frozen=True)
class KnownTexts:
    """The model's folder, and the checkout-like folder in which its store is found."""

    model: Path
    checkout: Path
    whole: Known
    part: Known
    none: Known


def make_known_texts(folder: Path, verse: Path) -> KnownTexts:
    """Prepare a store of the verse and train the model, which takes some seconds."""
    config = DataConfig(
        seq_length=64,
        tokenizer=TokenizerConfig(kind="byte_bpe", vocab_size=300),
        path=str(verse),
        text_documents="line",
        clean=(),
        validation=ValidationConfig(last_documents=4),
        directory=str(folder / "data/stores"),
    )
    store = prepare.prepare(config)
    lines = verse.read_text(encoding="utf-8").splitlines()
    whole = _known(lines[1][:60], copied=lines[1][PROMPT_CHARS:60], source=lines[1][:20])
    part = _known(BEFORE + lines[3][30:60] + BEHIND, copied=lines[3][30:60], source=lines[3][:20])
    none = _known(OWN)
    model = folder / "by_heart"
    _save(model, store)
    tokenizer = tokenizer_folder.load(store / "tokenizer")
    learn_by_heart(
        model, [[*tokenizer.encode(text.prompt), *tokenizer.encode(text.rest), tokenizer.eos_id] for text in (whole, part, none)]
    )
    return KnownTexts(model, folder, whole, part, none)


def _known(text: str, copied: str = "", source: str = "") -> Known:
    return Known(text[:PROMPT_CHARS], text[PROMPT_CHARS:], copied, source)


def _save(folder: Path, store: Path) -> None:
    """As an export of a run that read the store."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    size = {"vocab_size": 310, "n_positions": POSITIONS, "n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(**size)).save_pretrained(folder)
    shutil.copytree(store / "tokenizer", folder, dirs_exist_ok=True)
    (folder / "export.json").write_text(json.dumps({"text": text_of(read_manifest(store))}), encoding="utf-8")
