"""The last steps of a preparation: shards of documents become shards of ids."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data.config import DataConfig, TokenizerConfig
from data.documents import DataError, Document
from data.steps import intermediate
from data.steps.holdout import Holdout, SplitName
from data.steps.intermediate import DocumentFile, save_array
from data.steps.tasks import Result
from data.store import token_store
from data.tokenizers import tokenizer_folder
from data.tokenizers.encoders import Encoder, OtherIds

logger = logging.getLogger(__name__)

SPLITS: tuple[SplitName, ...] = ("train", "valid")

_BATCH_CHARS = 1 << 20


def training_texts(shards: Sequence[DocumentFile], holdouts: Mapping[int, Holdout]) -> Iterator[str]:
    """Yield the texts of the training split in order."""
    assigned = (item for shard in shards for item in holdouts[shard.source].assign(shard.read(), shard.place))
    return (document.text for name, document in assigned if name == "train")


class Tokens:
    """Turns documents into ids with their begin and end tokens, many at a time."""

    def __init__(
        self, corpus_tokenizer: tokenizer_folder.Tokenizer, config: TokenizerConfig, where: str, encoder: Encoder | None = None
    ) -> None:
        """Args: corpus_tokenizer: Whose ids. config: Which tokens around a document. where: For messages. encoder: None for the fastest."""
        if config.add_bos and corpus_tokenizer.bos_id is None:
            raise DataError(
                f"{where}: data.tokenizer.add_bos is true, but the tokenizer names no begin-of-text token. Set data.tokenizer.bos_token."
            )
        self._encode = encoder or corpus_tokenizer.fast
        self._before = [corpus_tokenizer.bos_id] if config.add_bos and corpus_tokenizer.bos_id is not None else []
        self._after = [corpus_tokenizer.eos_id] if config.add_eos else []

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of all texts end to end, and (len(texts),) how many belong to each."""
        ids, lengths = self._encode(texts)
        longer = lengths + len(self._before) + len(self._after)
        ends = np.cumsum(longer)
        framed = np.empty(int(longer.sum()), dtype=np.uint32)
        # Ids of text i move up by the special tokens of the texts before it, and by its own first.
        moved = np.arange(len(texts)) * (len(self._before) + len(self._after)) + len(self._before)
        framed[np.arange(len(ids)) + np.repeat(moved, lengths)] = ids
        if self._before:
            framed[ends - longer] = self._before
        if self._after:
            framed[ends - 1] = self._after
        return framed, longer


def tokenize_shard(config: DataConfig, shard: DocumentFile, holdout: Holdout, folder: Path, output: Path) -> Result:
    """Write the ids of a shard's training and held-out documents, each with a pair of its own, and count.

    Args:
        config: The data section.
        shard: What to read.
        holdout: Which documents are held out.
        folder: The tokenizer's.
        output: Prefix of what is written: <output>.train.bin and so on.
    """
    ours = tokenizer_folder.load(folder)
    try:
        return _write_shard(config, holdout.assign(shard.read(), shard.place), ours, ours.fast, output)
    except OtherIds:
        logger.warning("%s: gigatoken gives other ids than tokenizer.json; this part is done again without it, more slowly", shard.prefix)
        result = _write_shard(config, holdout.assign(shard.read(), shard.place), ours, ours.reference, output)
        return {**result, "without_gigatoken": True}


def _write_shard(
    config: DataConfig,
    documents: Iterable[tuple[SplitName, Document]],
    corpus_tokenizer: tokenizer_folder.Tokenizer,
    encoder: Encoder,
    output: Path,
) -> Result:
    tokens = Tokens(corpus_tokenizer, config.tokenizer, config.name, encoder)
    # Each mixed source is scored by itself, so it has a pair of its own.
    names = ["train", *([f"valid-{source}" for source in range(len(config.all_sources))] if config.mixes_sources else ["valid"])]
    parts = {name: _Part(split_prefix(output, name), corpus_tokenizer.vocab_size) for name in names}
    batches: dict[str, _Batch] = {name: _Batch(tokens, part.add) for name, part in parts.items()}
    with contextlib.ExitStack() as stack:
        keep: dict[str, Callable[[Document], None]] = {}
        for name, part in parts.items():
            stack.enter_context(part.shard)
            if config.documents is not None:
                keep[name] = stack.enter_context(intermediate.parquet_writer(documents_path(part.prefix)))
        for assigned, document in documents:
            name = f"valid-{document.of_source}" if assigned == "valid" and config.mixes_sources else assigned
            batches[name].add(document.text)
            if keep:
                keep[name](document)
        for batch in batches.values():
            batch.flush()
    for part in parts.values():
        save_array(chars_path(part.prefix), np.array(part.chars, dtype=np.int32))
        save_array(counts_path(part.prefix), part.counts)
    counts = {name: part.count() for name, part in parts.items()}
    result: Result = {split: add_up(count for name, count in counts.items() if name.startswith(split)) for split in SPLITS}
    return {**result, "pairs": counts}


def add_up(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Documents, tokens and chars of several pairs together."""
    totals = dict.fromkeys(("documents", "tokens", "chars"), 0)
    for count in counts:
        totals = {unit: total + count[unit] for unit, total in totals.items()}
    return totals


def split_prefix(output: Path, name: str) -> Path:
    """Prefix of a pair that `tokenize_shard` wrote: "train", "valid", or "valid-1" of a source that was mixed with others."""
    return output.with_name(f"{output.name}.{name}")


def chars_path(prefix: Path) -> Path:
    """Where the lengths of the documents in characters lie: (documents,) int32."""
    return prefix.with_name(prefix.name + ".chars.npy")


def counts_path(prefix: Path) -> Path:
    """Where it is counted how often each id occurs: (V,) int64."""
    return prefix.with_name(prefix.name + ".counts.npy")


def documents_path(prefix: Path) -> Path:
    """Where the cleaned documents lie, if they are kept."""
    return prefix.with_name(prefix.name + ".parquet")


class _Part:
    def __init__(self, prefix: Path, vocab_size: int) -> None:
        self.prefix = prefix
        self.shard = token_store.ShardWriter(prefix, vocab_size)
        self.chars: list[int] = []
        self.counts = np.zeros(vocab_size, dtype=np.int64)

    def count(self) -> dict[str, int]:
        return {"documents": self.shard.num_documents, "tokens": self.shard.num_tokens, "chars": sum(self.chars)}

    def add(self, texts: Sequence[str], ids: np.ndarray, lengths: np.ndarray) -> None:
        self.chars += map(len, texts)
        self.counts += np.bincount(ids, minlength=len(self.counts))
        ids = ids.astype(self.shard.dtype)
        start = 0
        for length in lengths.tolist():
            self.shard.add(ids[start : start + length])
            start += length


class _Batch:
    """Collects texts until a batch is worth encoding."""

    def __init__(self, tokens: Tokens, receive: Callable[[Sequence[str], np.ndarray, np.ndarray], None]) -> None:
        self._tokens = tokens
        self._receive = receive
        self._texts: list[str] = []
        self._num_chars = 0

    def add(self, text: str) -> None:
        self._texts.append(text)
        self._num_chars += len(text)
        if self._num_chars >= _BATCH_CHARS:
            self.flush()

    def flush(self) -> None:
        if self._texts:
            self._receive(self._texts, *self._tokens(self._texts))
            self._texts, self._num_chars = [], 0


def truncate(prefix: Path, max_tokens: int, vocab_size: int, output: Path) -> Result:
    """Copy the first documents of a pair, as many as have `max_tokens` in all, but at least one, and what belongs to them."""
    shard = token_store.Shard(prefix)
    ends = np.cumsum(shard.document_sizes, dtype=np.int64)
    num_documents = max(1, int(np.searchsorted(ends, max_tokens, side="right")))
    counts = np.zeros(vocab_size, dtype=np.int64)
    with token_store.ShardWriter(output, vocab_size) as writer:
        for ids in _documents(shard, ends[:num_documents]):
            writer.add(ids)
            counts += np.bincount(ids, minlength=vocab_size)
    chars = np.load(chars_path(prefix))[:num_documents]
    save_array(chars_path(output), chars)
    save_array(counts_path(output), counts)
    if documents_path(prefix).is_file():
        intermediate.copy_parquet(documents_path(prefix), num_documents, documents_path(output))
    return {"documents": num_documents, "tokens": writer.num_tokens, "chars": int(chars.sum(dtype=np.int64))}


def _documents(shard: token_store.Shard, ends: Iterable[int]) -> Iterator[np.ndarray]:
    start = 0
    for end in ends:
        yield shard.read(start, int(end) - start)
        start = int(end)
