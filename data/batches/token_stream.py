"""Token shards as one long sequence."""

import bisect
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from data.store.token_store import Shard


class Stream:
    """Shards end to end; optionally only the tokens [start, end) of them."""

    def __init__(self, shards: Sequence[Shard], start: int = 0, end: int | None = None) -> None:
        self._shards = shards
        self._ends = list(accumulate(shard.num_tokens for shard in shards))
        self._start = start
        total = self._ends[-1] if self._ends else 0
        self.num_tokens = (total if end is None else end) - start

    def read(self, start: int, length: int) -> np.ndarray:
        """Return `length` ids from `start` on; what would be beyond the end is read from the beginning."""
        pieces = []
        start %= self.num_tokens
        while length:
            number = bisect.bisect_right(self._ends, self._start + start)
            shard = self._shards[number]
            in_shard = self._start + start - self._ends[number] + shard.num_tokens
            available = min(length, shard.num_tokens - in_shard, self.num_tokens - start)
            pieces.append(shard.read(in_shard, available))
            length -= available
            start = (start + available) % self.num_tokens
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [np.empty(0, dtype=np.int64)])

    def document_starts(self) -> np.ndarray:
        """(documents,) where each document begins; of one that began before the stream, where the stream does."""
        sizes = np.concatenate([shard.document_sizes for shard in self._shards])
        starts = np.cumsum(sizes) - sizes
        starts = starts[(starts >= self._start) & (starts < self._start + self.num_tokens)] - self._start
        return np.insert(starts, 0, 0) if self.num_tokens and (not len(starts) or starts[0]) else starts
