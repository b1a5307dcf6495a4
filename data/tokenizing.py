"""The last steps of a preparation: shards of documents become shards of ids."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data import spool, store, tokenizer
from data.cleaning import save_array
from data.config import DataConfig, TokenizerConfig
from data.documents import DataError, Document
from data.split import Place, Split, SplitName
from data.tasks import Result

SPLITS: tuple[SplitName, ...] = ("train", "valid")

_BATCH_CHARS = 1 << 20


@dataclass(frozen=True)
class Shard:
    """Documents that are tokenized together."""

    prefix: Path
    """Of the file with the documents."""
    keep: Path | None
    """A mask over them, None for all."""
    place: Place
    stream: int
    """Which of the weighted sources it belongs to; 0 without weights."""

    def documents(self, split: Split) -> Iterator[tuple[SplitName, Document]]:
        """Yield its documents, each with the split it belongs to."""
        keep = np.load(self.keep) if self.keep else None
        return split.assign(spool.read(self.prefix, keep), self.place)


def training_texts(shards: Sequence[Shard], split: Split) -> Iterator[str]:
    """Yield the texts of the training split in order."""
    return (document.text for shard in shards for name, document in shard.documents(split) if name == "train")


class Tokens:
    """Turns documents into ids with their begin and end tokens, many at a time."""

    def __init__(self, corpus_tokenizer: tokenizer.Tokenizer, config: TokenizerConfig, where: str) -> None:
        if config.add_bos and corpus_tokenizer.bos_id is None:
            raise DataError(
                f"{where}: data.tokenizer.add_bos is true, but the tokenizer names no begin-of-text token. Set data.tokenizer.bos_token."
            )
        self._encode = corpus_tokenizer.fast
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


def tokenize_shard(config: DataConfig, shard: Shard, split: Split, folder: Path, output: Path) -> Result:
    """Write the ids of a shard's training and held-out documents, each with a pair of its own, and count.

    Args:
        config: The data section.
        shard: What to read.
        split: Which documents are held out.
        folder: The tokenizer's.
        output: Prefix of what is written: <output>.train.bin and so on.
    """
    corpus_tokenizer = tokenizer.load(folder)
    tokens = Tokens(corpus_tokenizer, config.tokenizer, config.name)
    result: Result = {}
    parts = {name: _Part(split_prefix(output, name), corpus_tokenizer.vocab_size) for name in SPLITS}
    batches: dict[str, _Batch] = {name: _Batch(tokens, part.add) for name, part in parts.items()}
    with contextlib.ExitStack() as stack:
        keep: dict[str, Callable[[Document], None]] = {}
        for name, part in parts.items():
            stack.enter_context(part.shard)
            if config.documents is not None:
                keep[name] = stack.enter_context(spool.parquet_writer(part.prefix.with_name(part.prefix.name + ".parquet")))
        for assigned, document in shard.documents(split):
            batches[assigned].add(document.text)
            if keep:
                keep[assigned](document)
        for batch in batches.values():
            batch.flush()
    for name, part in parts.items():
        save_array(chars_path(part.prefix), np.array(part.chars, dtype=np.int32))
        result[name] = {"documents": part.shard.num_documents, "tokens": part.shard.num_tokens, "chars": sum(part.chars)}
    save_array(counts_path(output), sum((part.counts for part in parts.values()), np.zeros(corpus_tokenizer.vocab_size, dtype=np.int64)))
    return result


def split_prefix(output: Path, name: str) -> Path:
    """Prefix of the pair of one split that `tokenize_shard` wrote."""
    return output.with_name(f"{output.name}.{name}")


def chars_path(prefix: Path) -> Path:
    """Where the lengths of the documents in characters lie: (documents,) int32."""
    return prefix.with_name(prefix.name + ".chars.npy")


def counts_path(output: Path) -> Path:
    """Where it is counted how often each id occurs: (V,) int64, both splits together."""
    return output.with_name(output.name + ".counts.npy")


class _Part:
    def __init__(self, prefix: Path, vocab_size: int) -> None:
        self.prefix = prefix
        self.shard = store.ShardWriter(prefix, vocab_size)
        self.chars: list[int] = []
        self.counts = np.zeros(vocab_size, dtype=np.int64)

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
    """Copy the first documents of a pair, as many as have `max_tokens` in all, but at least one."""
    shard = store.Shard(prefix)
    ends = np.cumsum(shard.document_sizes, dtype=np.int64)
    num_documents = max(1, int(np.searchsorted(ends, max_tokens, side="right")))
    with store.ShardWriter(output, vocab_size) as writer:
        for ids in _documents(shard, ends[:num_documents]):
            writer.add(ids)
    chars = np.load(chars_path(prefix))[:num_documents]
    save_array(chars_path(output), chars)
    return {"documents": num_documents, "tokens": writer.num_tokens, "chars": int(chars.sum(dtype=np.int64))}


def _documents(shard: store.Shard, ends: Iterable[int]) -> Iterator[np.ndarray]:
    start = 0
    for end in ends:
        yield shard.read(start, int(end) - start)
        start = int(end)
