"""Serve a token store as rows: which tokens sample number i holds, and nothing that depends on who asks.

The order is a pure function of (seed, sample index): every rank of every topology computes the same, and resuming at sample
i needs the number i only. How the store came to be is `prepare.py`.
"""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from data import store, tokenizer
from data.config import DataConfig
from data.documents import DataError
from data.order import mix, permute
from data.prepare import check_length, find_store

if TYPE_CHECKING:
    from torch import Tensor

IGNORED_LABEL = -100  # What the loss leaves out.
# Each rank hashes smaller files when it opens a store. Larger ones are compared by size, and hashed by `data.prepare`.
_MAX_HASHED_BYTES = 256 << 20


class Stream:
    """Shards end to end, as one long sequence of ids."""

    def __init__(self, shards: Sequence[store.Shard]) -> None:
        self._shards = shards
        self._ends = list(accumulate(shard.num_tokens for shard in shards))
        self.num_tokens = self._ends[-1] if self._ends else 0

    def read(self, start: int, length: int) -> np.ndarray:
        """Return `length` ids from `start` on; what would be beyond the end is read from the beginning."""
        pieces = []
        start %= self.num_tokens
        while length:
            number = bisect.bisect_right(self._ends, start)
            available = min(length, self._ends[number] - start)
            pieces.append(self._shards[number].read(start - self._ends[number] + self._shards[number].num_tokens, available))
            length -= available
            start = (start + available) % self.num_tokens
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class TrainingSet:
    """Windows of `seq_length + 1` tokens in a seeded order that differs from epoch to epoch, without end.

    An epoch cuts the stream into windows that share one token with their neighbours (the label of one is the first input of
    the next), from an offset of its own, so that the cuts fall elsewhere each time.
    """

    def __init__(self, stream: Stream, seq_length: int, seed: int, tail: Literal["drop", "wrap"]) -> None:
        self._stream = stream
        self._seq_length = seq_length
        self._seed = seed
        self.num_tokens = stream.num_tokens
        self.samples_per_epoch, self._num_offsets = _plan_epoch(stream.num_tokens, seq_length, tail)

    def sample(self, index: int) -> np.ndarray:
        """Return sample `index` (0, 1, 2 ... through all epochs): (T+1,) ids."""
        epoch, position = divmod(index, self.samples_per_epoch)
        offset = mix(self._seed, epoch, 0) % self._num_offsets
        window = permute(position, self.samples_per_epoch, mix(self._seed, epoch, 1))
        return self._stream.read(offset + window * self._seq_length, self._seq_length + 1)

    def batches(self, *, start_sample: int, replica: int, num_replicas: int, micro_batch: int) -> Iterator[tuple["Tensor", "Tensor"]]:
        """Yield (inputs, labels), each (B, T) int64, for one replica, without end.

        Micro-batch k of replica r holds samples start_sample + (k * num_replicas + r) * micro_batch and the following.
        """
        import torch

        first = start_sample + replica * micro_batch
        while True:
            rows = np.stack([self.sample(first + row) for row in range(micro_batch)]).astype(np.int64)
            yield torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, 1:].copy())
            first += num_replicas * micro_batch


def _plan_epoch(num_tokens: int, seq_length: int, tail: Literal["drop", "wrap"]) -> tuple[int, int]:
    """Return the number of windows of an epoch, and of offsets at which the first may begin."""
    if tail == "wrap":
        return num_tokens // seq_length, num_tokens
    num_windows = (num_tokens - 1) // seq_length
    # One window is given up for the sake of varying offsets; a corpus of a single window has none to give.
    num_windows -= num_windows > 1
    return num_windows, num_tokens - num_windows * seq_length


class ValidationSet:
    """The held-out tokens in rows that do not overlap: every token is scored exactly once.

    The end-of-text token stands before the first one, so that it too is predicted from something.
    """

    def __init__(self, stream: Stream, seq_length: int, corpus_tokenizer: tokenizer.Tokenizer, total_chars: int | None) -> None:
        self._stream = stream
        self._seq_length = seq_length
        self._tokenizer = corpus_tokenizer
        self._total_chars = total_chars
        self.num_tokens = stream.num_tokens
        self.num_rows = -(-stream.num_tokens // seq_length)

    def num_batches(self, *, num_replicas: int, micro_batch: int) -> int:
        """Batches that one replica needs so that all of them together score every token."""
        return -(-self.num_rows // (num_replicas * micro_batch))

    def batches(
        self, *, replica: int, num_replicas: int, micro_batch: int, num_batches: int | None = None
    ) -> Iterator[tuple["Tensor", "Tensor"]]:
        """Yield (inputs, labels), each (B, T) int64: as many for every replica, all of the same shape.

        Batch k of replica r holds rows (k * num_replicas + r) * micro_batch and the following. Labels that are not to be
        scored, those past the end, are -100.
        """
        import torch

        for number in range(self._limit(num_replicas, micro_batch, num_batches)):
            first = (number * num_replicas + replica) * micro_batch
            rows = [self._row(first + row) for row in range(micro_batch)]
            yield torch.from_numpy(np.stack([inputs for inputs, _ in rows])), torch.from_numpy(np.stack([labels for _, labels in rows]))

    def num_chars(self, *, num_replicas: int, micro_batch: int, num_batches: int | None = None) -> int:
        """Characters of the text that `batches` scores, over all replicas."""
        num_rows = self._limit(num_replicas, micro_batch, num_batches) * num_replicas * micro_batch
        scored = min(num_rows * self._seq_length, self.num_tokens)
        if scored == self.num_tokens and self._total_chars is not None:
            return self._total_chars
        return int(self._chars_before_row(scored))

    def _limit(self, num_replicas: int, micro_batch: int, num_batches: int | None) -> int:
        needed = self.num_batches(num_replicas=num_replicas, micro_batch=micro_batch)
        return needed if num_batches is None else min(needed, num_batches)

    def _chars_before_row(self, num_tokens: int) -> int:
        block = 1 << 20  # Bounds the memory; a held-out split may have tens of millions of tokens.
        starts = range(0, num_tokens, block)
        return sum(int(self._tokenizer.chars_per_id[self._stream.read(start, min(block, num_tokens - start))].sum()) for start in starts)

    def _row(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(T,) inputs and (T,) labels of a row; one past the last is all padding."""
        start = number * self._seq_length
        length = max(0, min(self._seq_length, self.num_tokens - start))
        inputs = np.full(self._seq_length, self._tokenizer.eos_id, dtype=np.int64)
        labels = np.full(self._seq_length, IGNORED_LABEL, dtype=np.int64)
        if length:
            labels[:length] = self._stream.read(start, length)
            inputs[1:length] = labels[: length - 1]
            if start:
                inputs[0] = self._stream.read(start - 1, 1)[0]
        return inputs, labels


@dataclass(frozen=True)
class Corpus:
    """An open token store: what training and validation read, with the tokenizer that made it."""

    folder: Path
    manifest: dict[str, Any]
    config: DataConfig
    seed: int

    @cached_property
    def tokenizer(self) -> tokenizer.Tokenizer:
        """The tokenizer of the store."""
        return tokenizer.load(self.folder / "tokenizer")

    @cached_property
    def train(self) -> TrainingSet:
        """The training split."""
        return TrainingSet(self._stream("train"), self.config.seq_length, self.seed, self.config.tail)

    @cached_property
    def valid(self) -> ValidationSet:
        """The held-out split."""
        return ValidationSet(self._stream("valid"), self.config.seq_length, self.tokenizer, self.manifest["splits"]["valid"]["chars"])

    def _stream(self, split: str) -> Stream:
        return Stream([store.Shard(self.folder / name) for name in self.manifest["splits"][split]["shards"]])


def open_corpus(config: DataConfig, seed: int, config_path: str | Path = "CONFIG") -> Corpus:
    """Open the store that `config` describes.

    Args:
        config: The data section.
        seed: Of the run: the order of the training windows follows from it.
        config_path: Named in the message when there is no store yet.

    Raises:
        DataError: If there is no such store, it is damaged, or it is shorter than one window.
    """
    folder = find_store(config)
    if folder is None:
        raise DataError(
            f'no token store for "{config.name}" with these rules in {config.directory}.'
            f" Make it first: .venv/bin/python -m data.prepare {config_path}"
        )
    manifest = store.read_manifest(folder)
    store.verify(folder, manifest, max_hashed_bytes=_MAX_HASHED_BYTES)
    if tokenizer.fingerprint(folder / "tokenizer") != manifest["tokenizer"]["sha256"]:
        raise DataError(f"{folder}: its tokenizer is not the one its tokens were made with. Delete the folder and prepare the data again.")
    check_length(manifest["splits"]["train"]["tokens"], config)
    return Corpus(folder, manifest, config, seed)
