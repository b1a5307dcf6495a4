"""Use a .bin/.idx pair that another program of Megatron's family wrote, as it is."""

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from data.config import DataConfig
from data.documents import DataError
from data.source_config import TextConfig
from data.steps.holdout import plan_holdout
from data.store import token_store
from data.store.fits_config import check_splits
from data.tokenizers import adoption, tokenizer_folder
from ds_configs.atomic_files import sha256_of

logger = logging.getLogger(__name__)

_BLOCK_TOKENS = 16 << 20


def describe(config: DataConfig, folder: Path) -> dict[str, Any]:
    """Put the tokenizer into a store's folder, and return what its manifest says of the pair.

    The ids are read once, to see that the tokenizer knows them.

    Raises:
        DataError: If the pair is damaged, was made with a larger vocabulary, or is too short.
    """
    assert config.store is not None, "asked for by the caller"
    _say_what_does_nothing(config)
    adoption.adopt(config.tokenizer, folder / "tokenizer")
    shard = token_store.Shard(Path(config.store))
    shard.check_index(config.store)
    _check_ids(shard, tokenizer_folder.load(folder / "tokenizer").vocab_size, config)
    sizes = shard.document_sizes
    holdout = plan_holdout(config.validation, [len(sizes)], shard.num_tokens)
    if holdout.from_document is not None:
        boundary = int(sizes[: holdout.from_document].sum())
    else:
        # Without the text there is nothing to hash: the last share of the tokens is held out, from a document's beginning if there is one.
        wanted = shard.num_tokens - round(shard.num_tokens * (config.validation.ratio or 0))
        starts = np.cumsum(sizes) - sizes
        later = starts[starts >= wanted]
        boundary = int(later[0]) if len(later) else wanted
    held_out_end = min(shard.num_tokens, boundary + (config.validation.max_tokens or shard.num_tokens))
    train_end = min(boundary, config.max_train_tokens or boundary)
    pair = {"prefix": str(Path(config.store).resolve()), "bytes": Path(f"{config.store}.bin").stat().st_size}
    splits = {}
    for name, start, end in (("train", 0, train_end), ("valid", boundary, held_out_end)):
        stream = {"name": config.name, "source": 0, "range": [start, end]}
        splits[name] = {"tokens": end - start, "documents": None, "chars": None, "streams": [stream]}
    check_splits(splits, config)
    return {"splits": splits, "pair": pair}


def verify(config: DataConfig, manifest: dict[str, Any]) -> None:
    """Compare the pair with the hashes that were taken when its store was made, whatever its times say.

    Raises:
        DataError: If a file has changed.
    """
    hashes = {item["name"]: item["sha256"] for item in manifest["inputs"]}
    for ending in (".bin", ".idx"):
        path = Path(f"{config.store}{ending}")
        if path.name in hashes and sha256_of(path) != hashes[path.name]:
            raise DataError(
                f"{path} was changed after its store was made (its SHA-256 does not fit). Bring the right file back, or prepare anew."
            )


def _say_what_does_nothing(config: DataConfig) -> None:
    unset = TextConfig()
    keys = [item.name for item in fields(TextConfig) if getattr(config, item.name) != getattr(unset, item.name)]
    keys += [name for name in ("deduplicate", "shuffle", "documents", "pack") if getattr(config, name)]
    if keys:
        named = ", ".join(f"data.{key}" for key in keys)
        logger.warning("%s: a finished store is read as it is, so these keys do nothing: %s", config.store, named)


def _check_ids(shard: token_store.Shard, vocab_size: int, config: DataConfig) -> None:
    for start in range(0, shard.num_tokens, _BLOCK_TOKENS):
        ids = shard.read(start, min(_BLOCK_TOKENS, shard.num_tokens - start))
        for extreme in (int(ids.min()), int(ids.max())):
            if not 0 <= extreme < vocab_size:
                raise DataError(
                    f"{config.store}.bin holds the id {extreme}, but the tokenizer at {config.tokenizer.path} has {vocab_size}."
                    " It was made with another tokenizer: give that one."
                )
