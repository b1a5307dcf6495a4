"""Which tokens training sample number i holds: windows cut from token streams, in a seeded order, mixed by weight.

Everything here is a pure function of (seed, sample index).
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from data.batches.permutation import Ranges, mix, permute, place
from data.batches.token_stream import Stream
from data.config import BLOCK_SAMPLES, samples_of_weights

if TYPE_CHECKING:
    from torch import Tensor


class StreamWindows:
    """Windows that share one token with their neighbours (the label of one is the first input of the next).

    Each epoch cuts the stream from an offset of its own, so that the cuts fall elsewhere each time.
    """

    def __init__(self, stream: Stream, seq_length: int, seed: int, tail: Literal["drop", "wrap"]) -> None:
        self._stream = stream
        self._seq_length = seq_length
        self._seed = seed
        if tail == "wrap":
            # So many that every token is a label; the last window goes on with the first ones.
            self.per_epoch, self._num_offsets = -(-stream.num_tokens // seq_length), stream.num_tokens
            return
        num_windows = (stream.num_tokens - 1) // seq_length
        # One window is given up for the sake of varying offsets; a stream of a single window has none to give.
        self.per_epoch = num_windows - (num_windows > 1)
        self._num_offsets = stream.num_tokens - self.per_epoch * seq_length

    def read(self, index: int) -> np.ndarray:
        """Return window `index` (0, 1, 2 ... through all epochs): (T+1,) ids."""
        epoch, position = divmod(index, self.per_epoch)
        offset = mix(self._seed, epoch, 0) % self._num_offsets
        window = permute(position, self.per_epoch, mix(self._seed, epoch, 1))
        return self._stream.read(offset + window * self._seq_length, self._seq_length + 1)


class DocumentWindows:
    """Windows that begin where a document begins and hold the documents behind it.

    A document cut off at the end of a window begins the next one, so that its first tokens are labels twice in an epoch; one longer
    than a window goes on in the next, which then begins inside it.
    """

    def __init__(self, stream: Stream, seq_length: int, seed: int) -> None:
        self._stream = stream
        self._seq_length = seq_length
        self._seed = seed
        self._starts = window_starts(stream.document_starts(), stream.num_tokens, seq_length)
        self.per_epoch = len(self._starts)

    def read(self, index: int) -> np.ndarray:
        """Return window `index` (0, 1, 2 ... through all epochs): (T+1,) ids. The last one may go on with the first document."""
        epoch, position = divmod(index, self.per_epoch)
        window = permute(position, self.per_epoch, mix(self._seed, epoch, 1))
        return self._stream.read(int(self._starts[window]), self._seq_length + 1)


Windows = StreamWindows | DocumentWindows
"""One stream as an endless sequence of windows, epoch after epoch."""


def window_starts(document_starts: np.ndarray, num_tokens: int, seq_length: int) -> np.ndarray:
    """(windows,) where windows begin so that every token is a label in one of them, documents' first ones inputs only."""

    def begins() -> Iterator[int]:
        position = 0
        while position < num_tokens - 1:
            yield position
            end = position + seq_length + 1
            # The last document that begins before the window's end and is not over there, unless the window began with it.
            begun = int(document_starts[np.searchsorted(document_starts, min(end, num_tokens), side="right") - 1])
            position = begun if begun > position else end - 1

    return np.fromiter(begins(), dtype=np.int64)  # A list would take four times the memory.


def row_bounds(windows: Literal["stream", "documents"], document_starts: np.ndarray, num_tokens: int, seq_length: int) -> np.ndarray:
    """(rows + 1,) where rows of at most `seq_length` tokens begin, and the end of the last, so that each token is in exactly one.

    By documents, a row ends before one that would not fit, so that every row begins with a document or goes on with one longer than a row.
    """
    if windows == "stream":
        return np.append(np.arange(0, num_tokens, seq_length), num_tokens)
    bounds = [0]
    while bounds[-1] < num_tokens:
        end = bounds[-1] + seq_length
        begun = int(document_starts[np.searchsorted(document_starts, end, side="right") - 1])
        bounds.append(num_tokens if end >= num_tokens else begun if begun > bounds[-1] else end)
    return np.array(bounds, dtype=np.int64)


class TrainingSet:
    """Samples of `seq_length + 1` tokens without end."""

    def __init__(self, windows: Sequence[Windows], weights: Sequence[float], seed: int) -> None:
        """Mix windows of several streams.

        Args:
            windows: One or more streams.
            weights: Their shares of the samples.
            seed: Decides which stream each sample is from.
        """
        self._windows = windows
        self._counts = samples_of_weights(weights)
        self._ends = np.cumsum(self._counts).tolist()
        self._seed = seed
        self.samples_per_epoch = sum(part.per_epoch for part in windows)

    def sample(self, index: int) -> np.ndarray:
        """Return sample `index` (0, 1, 2 ... through all epochs): (T+1,) ids."""
        if len(self._windows) == 1:
            return self._windows[0].read(index)
        block, position = divmod(index, BLOCK_SAMPLES)
        position = permute(position, BLOCK_SAMPLES, mix(self._seed, block, 2))
        stream = next(number for number, end in enumerate(self._ends) if position < end)
        first = self._ends[stream] - self._counts[stream]
        return self._windows[stream].read(block * self._counts[stream] + position - first)

    def batches(
        self, *, start_sample: int, replica: int, num_replicas: int, micro_batch: int, skipped: Ranges = ()
    ) -> Iterator[tuple["Tensor", "Tensor"]]:
        """Yield (inputs, labels), each (B, T) int64, for one replica, without end.

        Micro-batch k of replica r holds samples start_sample + (k * num_replicas + r) * micro_batch and the following, counted without
        those that are skipped.
        """
        import torch

        first = start_sample + replica * micro_batch
        while True:
            rows = np.stack([self.sample(place(first + row, skipped)) for row in range(micro_batch)]).astype(np.int64)
            yield torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, 1:].copy())
            first += num_replicas * micro_batch
