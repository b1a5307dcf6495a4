"""Make a store of what the steps left: links to the shards, budgets applied, tokenizer, report, manifest."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data import pack, report, store, tokenizer, tokenizing
from data.config import DataConfig
from data.documents import DataError
from data.identity import Identity
from data.pipeline import Steps, Tokenized
from data.tasks import Task, run
from data.tokenizing import SPLITS, split_prefix


def publish(config: DataConfig, steps: Steps, identity: Identity, work: Path) -> Path:
    """Build the whole store in a folder of its own inside `work` and return it, ready to be renamed.

    Raises:
        DataError: If the training split is shorter than one window.
    """
    folder = work / "store"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copytree(steps.tokenizer, folder / "tokenizer")
    made = tokenizer.load(folder / "tokenizer")
    budgets = {"train": config.max_train_tokens, "valid": config.validation.max_tokens}
    splits: dict[str, dict[str, Any]] = {name: _link_split(config, getattr(steps, name), (name, budgets[name]), folder) for name in SPLITS}
    check_length(splits["train"]["tokens"], config)
    if not splits["valid"]["tokens"]:
        raise DataError(f"{config.name}: nothing is held out for validation. Raise data.validation.ratio, or bring more text.")
    report.write(config, steps, splits, folder)
    if config.pack is not None:
        splits["train"]["packed"] = pack.write(folder, splits["train"], config.pack.length)
    store.write_manifest(folder, {"name": config.name, **identity.as_manifest(), "tokenizer": describe(made, folder), "splits": splits})
    return folder


def describe(made: tokenizer.Tokenizer, folder: Path) -> dict[str, Any]:
    """What the manifest says about the tokenizer."""
    return {
        "sha256": tokenizer.fingerprint(folder / "tokenizer"),
        "vocab_size": made.vocab_size,
        "eos_id": made.eos_id,
        "bos_id": made.bos_id,
    }


def check_length(num_tokens: int, config: DataConfig) -> None:
    """Refuse a training split that does not fill one window.

    Raises:
        DataError: If it does not.
    """
    if num_tokens < config.seq_length + 1:
        raise DataError(
            f"{config.name}: {num_tokens} training tokens are less than one window of data.seq_length + 1 ="
            f" {config.seq_length + 1}. Shorten the window or bring more text."
        )


def _link_split(config: DataConfig, tokenized: Sequence[Tokenized], split: tuple[str, int | None], folder: Path) -> dict[str, Any]:
    """Give the store's names to the shards of one split and return what the manifest says about it."""
    name, budget = split
    streams: dict[int, list[str]] = {}
    totals = {"documents": 0, "tokens": 0, "chars": 0}
    for item in tokenized:
        left = None if budget is None else budget - totals["tokens"]
        if left is not None and left <= 0:
            break
        counts, prefix = item.result[name], split_prefix(item.output, name)
        if left is not None and counts["tokens"] > left:
            vocab_size = tokenizer.load(folder / "tokenizer").vocab_size
            cut = Task(folder.parent / "5-cut" / f"{name}-{left}", tokenizing.truncate, (prefix, left, vocab_size))
            (counts,) = run([cut], 1)
            prefix = cut.output
        shard = f"{name}-{sum(map(len, streams.values())):05d}"
        for ending in (".bin", ".idx"):
            _link(prefix.with_name(prefix.name + ending), folder / (shard + ending))
        if config.documents is not None:
            (folder / "documents").mkdir(exist_ok=True)
            source = split_prefix(item.output, name)
            _link(source.with_name(source.name + ".parquet"), folder / "documents" / f"{shard}.parquet")
        streams.setdefault(item.shard.stream, []).append(shard)
        totals = {key: value + counts[key] for key, value in totals.items()}
    named = [
        {"name": config.all_sources[stream].name if config.is_weighted else config.name, "source": stream, "shards": shards}
        for stream, shards in sorted(streams.items())
    ]
    return {**totals, "streams": named}


def _link(source: Path, target: Path) -> None:
    """A second name for a file; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
