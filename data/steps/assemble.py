"""Make a store of what the steps left: links to the shards, budgets applied, tokenizer, report."""

import logging
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.batches.token_stream import Stream
from data.config import DataConfig
from data.steps import report, tokenization
from data.steps.clean import bad_input
from data.steps.holdout import warn_of_large_share
from data.steps.pipeline import Pair, Steps, valid_budget
from data.steps.tasks import Task, run
from data.steps.tokenization import DOCUMENTS, add_up
from data.store import token_store
from data.store.fits_config import check_splits
from ds_configs.atomic_files import with_ending

logger = logging.getLogger(__name__)

_PACKED = "packed-train.parquet"
_ROWS_PER_GROUP = 1 << 14


def assemble(config: DataConfig, steps: Steps, folder: Path) -> dict[str, Any]:
    """Fill a store's folder, and return what its manifest says of the splits and of the input.

    Raises:
        DataError: If there is too little in a split.
    """
    shutil.copytree(steps.tokenizer, folder / "tokenizer")
    linked = {name: _link_split(config, pairs, name, folder) for name, pairs in steps.pairs.items()}
    splits: dict[str, Any] = {name: _describe_split(config, pairs, name) for name, pairs in linked.items()}
    check_splits(splits, config)
    held_out = splits["valid"]["tokens"]
    scored = {part["name"] for part in splits["valid"]["streams"]}
    for source in config.source_names if len(config.all_sources) > 1 else ():
        if source not in scored:
            logger.warning("nothing of %s is held out, so it has no score of its own", source)
    warn_of_large_share(held_out, held_out + splits["train"]["tokens"], config.validation)
    report.write(config, steps, linked, splits, folder)
    if config.pack is not None:
        splits["train"]["packed"] = _pack(folder, splits["train"], config.pack.length)
    return {"splits": splits, "bad_input": bad_input(steps.cleaned)}


def _link_split(config: DataConfig, pairs: Sequence[Pair], split: str, folder: Path) -> list[Pair]:
    """Give names in the store to the pairs of one split, as many as its budget has room for, the last one cut where it ends."""
    linked: list[Pair] = []
    limit = config.max_train_tokens if split == "train" else valid_budget(config)
    budget = math.inf if limit is None else limit
    lefts: dict[int, float] = {}
    for pair in pairs:
        of_budget = pair.source if split == "valid" else 0  # Each held-out source has a budget of its own.
        left = lefts.get(of_budget, budget)
        lefts[of_budget] = left - pair.counts["tokens"]
        if left <= 0:
            continue
        if lefts[of_budget] < 0:
            cut = Task(folder.parent / "5-cut" / f"{split}-{pair.source}-{left}", tokenization.truncate, (pair.prefix, left))
            (counts,) = run([cut], 1)
            if left < budget and counts["tokens"] > left:
                continue  # Not even one of its documents has room.
            pair = replace(pair, prefix=cut.output, counts=counts)
        named = replace(pair, name=f"{split}-{len(linked):05d}")
        for ending in (".bin", ".idx"):
            _link(with_ending(named.prefix, ending), folder / (named.name + ending))
        if config.documents is not None:
            (folder / "documents").mkdir(exist_ok=True)
            _link(with_ending(named.prefix, DOCUMENTS), folder / "documents" / (named.name + DOCUMENTS))
        linked.append(named)
    return linked


def _describe_split(config: DataConfig, linked: Sequence[Pair], name: str) -> dict[str, Any]:
    """What the manifest says about a split: training mixes weighted sources, validation scores each by itself."""
    apart = config.is_weighted or (name == "valid" and len(config.all_sources) > 1)
    streams: dict[int, list[Pair]] = {}
    for item in linked:
        streams.setdefault(item.source if apart else 0, []).append(item)
    named = [
        {
            "name": config.source_names[source] if apart else config.name,
            "source": source,
            "shards": [item.name for item in items],
            **add_up(item.counts for item in items),
        }
        for source, items in sorted(streams.items())
    ]
    return {**add_up(item.counts for item in linked), "streams": named}


def _link(source: Path, target: Path) -> None:
    """A second name for a file; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _pack(folder: Path, split: dict[str, Any], length: int) -> dict[str, int]:
    """Write a split's tokens once more as Parquet rows of `length` ids, documents end to end; only the unfinished last row is left out.

    Returns:
        What the manifest says of them.
    """
    import pyarrow
    import pyarrow.parquet

    stream = Stream([token_store.Shard(folder / name) for part in split["streams"] for name in part["shards"]])
    num_rows, left_out = divmod(stream.num_tokens, length)
    logger.info("%s: %d rows of %d tokens; the last %d tokens do not fill one", _PACKED, num_rows, length, left_out)
    schema = pyarrow.schema([("input_ids", pyarrow.list_(pyarrow.int32(), length))])
    with pyarrow.parquet.ParquetWriter(folder / _PACKED, schema, compression="zstd") as file:
        for first in range(0, num_rows, _ROWS_PER_GROUP):
            count = min(_ROWS_PER_GROUP, num_rows - first)
            ids = stream.read(first * length, count * length).astype("int32")
            rows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(ids), length)
            file.write_table(pyarrow.Table.from_arrays([rows], schema=schema))
    return {"rows": num_rows, "length": length, "left_out_tokens": left_out}
