"""The last steps of a preparation: shards of documents become shards of ids."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data.config import DataConfig
from data.documents import DataError, Document, batched
from data.steps import document_files
from data.steps.document_files import DocumentFile, save_array
from data.steps.holdout import SplitName
from data.steps.tasks import Result
from data.store import token_store
from data.tokenizers import tokenizer_folder
from data.tokenizers.encoders import Encoder, OtherIds
from ds_configs.atomic_files import with_ending

logger = logging.getLogger(__name__)

SPLITS: tuple[SplitName, ...] = ("train", "valid")

# What lies beside the .bin and .idx of a pair in the work folder.
CHARS = ".chars.npy"  # (documents,) int32: their lengths in characters.
COUNTS = ".counts.npy"  # (V,) int64: how often each id occurs.
DOCUMENTS = ".parquet"  # The cleaned documents, if they are kept.

_BATCH_SIZE = 1 << 20  # In characters; of what is copied, in tokens.


def tokenize_shard(config: DataConfig, shard: DocumentFile, folder: Path, output: Path) -> Result:
    """Write the ids of a shard's training and held-out documents, each with a pair of its own, and count.

    `folder` is the tokenizer's; what is written begins with `output`: <output>.train.bin and so on.
    """
    ours = tokenizer_folder.load(folder)
    try:
        return _write_shard(config, shard, ours, ours.fast, output)
    except OtherIds:
        logger.warning("%s: gigatoken gives other ids than tokenizer.json; this part is done again without it, more slowly", shard.prefix)
        result = _write_shard(config, shard, ours, ours.reference, output)
        return {**result, "without_gigatoken": True}


def _write_shard(config: DataConfig, shard: DocumentFile, ours: tokenizer_folder.Tokenizer, encode: Encoder, output: Path) -> Result:
    encode = _with_ends(config, ours, encode)
    # Each mixed source is scored by itself, so it has a pair of its own.
    names = ["train", *([f"valid-{source}" for source in range(len(config.all_sources))] if config.mixes_sources else ["valid"])]
    with contextlib.ExitStack() as stack:
        pairs = {name: stack.enter_context(_PairWriter(split_prefix(output, name), ours.vocab_size)) for name in names}
        keep: dict[str, Callable[[Document], None]] = {}
        if config.documents is not None:
            files = {name: with_ending(split_prefix(output, name), DOCUMENTS) for name in names}
            keep = {name: stack.enter_context(document_files.parquet_writer(file)) for name, file in files.items()}

        def assigned() -> Iterator[tuple[str, str]]:
            for split, document in shard.read_splits():
                name = f"valid-{document.of_source}" if split == "valid" and config.mixes_sources else split
                if keep:
                    keep[name](document)
                yield name, document.text  # Not the document: thousands that are kept give the garbage collector work.

        for batch in batched(assigned(), lambda item: len(item[1]), _BATCH_SIZE):
            for name, pair in pairs.items():
                if texts := [text for wanted, text in batch if wanted == name]:
                    pair.write(*encode(texts), map(len, texts))
    counts = {name: pair.count() for name, pair in pairs.items()}
    result: Result = {split: add_up(count for name, count in counts.items() if name.startswith(split)) for split in SPLITS}
    return {**result, "pairs": counts}


def _with_ends(config: DataConfig, ours: tokenizer_folder.Tokenizer, encode: Encoder) -> Encoder:
    """An encoder that puts the begin and end tokens of documents around the ids of each text."""

    def encode_documents(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = encode(texts)
        if config.tokenizer.add_eos:
            ids, lengths = np.insert(ids, np.cumsum(lengths), ours.eos_id), lengths + 1
        if config.tokenizer.add_bos:
            if ours.bos_id is None:  # An earlier version took it over, and did not look.
                said = f"{config.name}: data.tokenizer.add_bos is true, but {config.tokenizer.path} names no begin-of-text token"
                raise DataError(f"{said}. Name one: data.tokenizer.bos_token=...")
            ids, lengths = np.insert(ids, np.cumsum(lengths) - lengths, ours.bos_id), lengths + 1
        return ids, lengths

    return encode_documents


def add_up(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Documents, tokens and chars of several pairs together."""
    added = list(counts)
    return {unit: sum(count[unit] for count in added) for unit in ("documents", "tokens", "chars")}


def split_prefix(output: Path, name: str) -> Path:
    """Prefix of a pair that `tokenize_shard` wrote: "train", "valid", or "valid-1" of a source that was mixed with others."""
    return with_ending(output, f".{name}")


class _PairWriter(token_store.ShardWriter):
    """Counts what it writes."""

    def __init__(self, prefix: Path, vocab_size: int) -> None:
        super().__init__(prefix, vocab_size)
        self._prefix = prefix
        self._chars: list[int] = []
        self._counts = np.zeros(vocab_size, dtype=np.int64)

    def write(self, ids: np.ndarray, lengths: Sequence[int] | np.ndarray, chars: Iterable[int]) -> None:
        """Write documents: their ids end to end, how many of them belong to each, and how many characters."""
        self._chars += chars
        self._counts += np.bincount(ids, minlength=len(self._counts))
        for document in np.split(ids.astype(self.dtype), np.cumsum(lengths)[:-1]):
            self.add(document)

    def count(self) -> dict[str, int]:
        """Write what belongs to the pair, and return its numbers of documents, tokens and characters."""
        save_array(with_ending(self._prefix, CHARS), np.array(self._chars, dtype=np.int32))
        save_array(with_ending(self._prefix, COUNTS), self._counts)
        return {"documents": self.num_documents, "tokens": self.num_tokens, "chars": sum(self._chars)}


def truncate(prefix: Path, max_tokens: int, output: Path) -> Result:
    """Copy the first documents of a pair, as many as have `max_tokens` in all, but at least one, and what belongs to them."""
    shard = token_store.Shard(prefix)
    sizes = shard.document_sizes
    num_documents = max(1, int(np.searchsorted(np.cumsum(sizes), max_tokens, side="right")))
    chars = np.load(with_ending(prefix, CHARS))[:num_documents].tolist()
    start = 0
    with _PairWriter(output, len(np.load(with_ending(prefix, COUNTS)))) as pair:
        for batch in batched(zip(sizes[:num_documents].tolist(), chars, strict=True), lambda document: document[0], _BATCH_SIZE):
            lengths, batch_chars = zip(*batch, strict=True)
            pair.write(shard.read(start, sum(lengths)), lengths, batch_chars)
            start += sum(lengths)
    if with_ending(prefix, DOCUMENTS).is_file():
        document_files.copy_parquet(with_ending(prefix, DOCUMENTS), num_documents, with_ending(output, DOCUMENTS))
    return pair.count()
