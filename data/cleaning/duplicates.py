"""Find duplicate documents, exact and near, in a corpus of any size with bounded memory.

Two steps. `write_sketches` runs once per piece of the corpus, in any order and in parallel: it writes a small file of
hashes. `find_duplicates` reads those files and says which documents to leave out: of equal or nearly equal ones all but
the first in corpus order. What is in a sketch is `minhash.py`.

    d0 d1 d2 ...  --sketch-->  hashes, band keys, signatures  --sort by key-->  groups  --compare-->  drops
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from data.cleaning.minhash import band_keys, exact_hashes, signatures
from data.cleaning_config import DeduplicateConfig
from data.documents import DataError, batched
from ds_configs.atomic_files import replacing

log = logging.getLogger(__name__)

KEPT, EXACT, NEAR = 0, 1, 2  # What becomes of a document.

_BATCH_CHARS = 1 << 20
_CHUNK_DOCUMENTS = 1 << 16  # Of a sketch file, written at once; about 40 MB.
_SORTED_AT_ONCE = 4 << 20  # Keys; sorting them takes about 200 MB.
_COMPARED_AT_ONCE = 1 << 16
_ROUNDS = 4
_NUM_SAMPLES = 5


@dataclass(frozen=True)
class Duplicates:
    """What to leave out of each piece, and examples."""

    reasons: list[np.ndarray]
    """Per piece: (documents,) uint8, KEPT, EXACT or NEAR."""
    samples: list[tuple[int, tuple[int, int], tuple[int, int]]]
    """(reason, (piece, index) of the document left out, (piece, index) of the one it resembles): the first few of each kind."""

    def count(self, reason: int) -> int:
        """How many documents have this reason."""
        return sum(int(np.count_nonzero(piece == reason)) for piece in self.reasons)


def write_sketches(path: Path, texts: Iterable[str], config: DeduplicateConfig) -> int:
    """Write the sketches of a piece's documents, all or nothing, and return their number. Equal texts give equal files."""
    count = 0
    with replacing(path) as temporary, temporary.open("wb") as file:
        texts = iter(texts)
        while chunk := [_sketch(batch, config) for batch in batched(islice(texts, _CHUNK_DOCUMENTS), len, _BATCH_CHARS)]:
            for tables in zip(*chunk, strict=True):
                np.concatenate(tables, axis=1).tofile(file)
            count += sum(tables[0].shape[1] for tables in chunk)
    return count


def find_duplicates(paths: Sequence[Path], config: DeduplicateConfig) -> Duplicates:
    """Compare the documents of all pieces, given by their sketches in corpus order.

    Of each set of duplicates the first document stays. A near duplicate is one that resembles an earlier document that is
    still in, by `min_similarity`; so a long chain of small changes is cut where its ends no longer resemble each other.

    Raises:
        DataError: If a file has not the size that `config` means.
    """
    sketches = _Sketches(paths, config)
    if config.exact:
        for group in _groups(sketches, None):
            _resolve(group, sketches, EXACT, sketches.are_equal)
        log.info("%d documents, %d exact duplicates", len(sketches.reasons), np.count_nonzero(sketches.reasons))
    if config.near is not None:
        for band in range(config.near.bands):
            for group in _groups(sketches, band):
                _resolve(group, sketches, NEAR, sketches.are_near)
        log.info("%d near duplicates", np.count_nonzero(sketches.reasons == NEAR))
    return Duplicates(np.split(sketches.reasons, sketches.piece_starts[1:-1]), sketches.samples)


def _sketch(texts: Sequence[str], config: DeduplicateConfig) -> tuple[np.ndarray, ...]:
    """The tables of some documents of a chunk: (1, documents, 2), (bands, documents), (1, documents, num_hashes)."""
    exact = exact_hashes(texts)
    if config.near is None:
        return (exact[None],)
    signature = signatures(texts, config.near)
    keys = band_keys(signature, config.near)
    # Texts without letters have the same signature, which says nothing: only equal ones may meet.
    empty = (signature == 0xFFFFFFFF).all(axis=1)
    keys[:, empty] = exact[empty, 0]
    # Of the signature the low bits do: different ones agree in them once in 65,536.
    return exact[None], keys.astype("<u8"), signature.astype("<u2")[None]


@dataclass(frozen=True)
class _Chunk:
    """Some documents of a sketch file: [exact hashes | band keys, band by band | signatures]."""

    path: Path
    offset: int
    count: int


class _Sketches:
    """The sketch files of a corpus, whose documents are numbered through, and what was found out about these."""

    def __init__(self, paths: Sequence[Path], config: DeduplicateConfig) -> None:
        self._near = config.near
        self._chunks: list[_Chunk] = []
        counts = []
        for path in paths:
            size, width = path.stat().st_size, config.bytes_per_document
            if size % width:
                raise DataError(f"{path}: {size} bytes are no whole number of sketches. Delete it; the next start makes it again.")
            counts.append(size // width)
            for first in range(0, size // width, _CHUNK_DOCUMENTS):
                self._chunks.append(_Chunk(path, first * width, min(_CHUNK_DOCUMENTS, size // width - first)))
        self.piece_starts = np.cumsum([0, *counts], dtype=np.int64)
        self._starts = np.cumsum([0, *(chunk.count for chunk in self._chunks)], dtype=np.int64)
        self.reasons = np.zeros(self._starts[-1], dtype=np.uint8)
        self.samples: list[tuple[int, tuple[int, int], tuple[int, int]]] = []

    def drop(self, reason: int, later: np.ndarray, first: np.ndarray) -> None:
        """Note that documents, (documents,), are left out, and which ones they resemble."""
        self.reasons[later] = reason
        room = _NUM_SAMPLES - sum(sample[0] == reason for sample in self.samples)
        pairs = zip(later[:room].tolist(), first[:room].tolist(), strict=True)
        self.samples += [(reason, self._place(copy), self._place(original)) for copy, original in pairs]

    def _place(self, number: int) -> tuple[int, int]:
        """The piece of a document and its index in it."""
        piece = int(np.searchsorted(self.piece_starts, number, side="right")) - 1
        return piece, number - int(self.piece_starts[piece])

    def keys(self, band: int | None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (number of the first document, (documents,) uint64) per chunk: a band's keys, or the exact hashes' first half."""
        for start, chunk in zip(self._starts.tolist(), self._chunks, strict=False):
            if band is None:
                yield start, np.fromfile(chunk.path, dtype="<u8", count=2 * chunk.count, offset=chunk.offset)[::2]
            else:
                offset = chunk.offset + chunk.count * (16 + 8 * band)
                yield start, np.fromfile(chunk.path, dtype="<u8", count=chunk.count, offset=offset)

    def are_equal(self, numbers: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(documents,), (documents,) -> (documents,) bool, of documents with equal keys: whether the other half of the hashes is equal."""
        first, second = (self._rows(part, "<u8", width=2, before=0)[:, 1] for part in (numbers, others))
        return first == second

    def are_near(self, numbers: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(documents,), (documents,) -> (documents,) bool: whether the estimated share of common windows is large enough."""
        assert self._near is not None, "without near duplicates there are no signatures"
        before = 16 + 8 * self._near.bands
        first, second = (self._rows(part, "<u2", self._near.num_hashes, before) for part in (numbers, others))
        return (first == second).mean(axis=1) >= self._near.min_similarity

    def _rows(self, numbers: np.ndarray, dtype: str, width: int, before: int) -> np.ndarray:
        """(documents,) -> (documents, width); `before` is how many bytes a document has in the tables that stand before this one."""
        rows = np.empty((len(numbers), width), dtype)
        chunk_of = np.searchsorted(self._starts, numbers, side="right") - 1
        for index in np.unique(chunk_of).tolist():
            chunk, here = self._chunks[index], chunk_of == index
            table = np.memmap(chunk.path, dtype, "r", chunk.offset + chunk.count * before, (chunk.count, width))
            rows[here] = table[numbers[here] - self._starts[index]]
        return rows


def _groups(sketches: _Sketches, band: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (documents, group of each) of documents that share a key and are still in, by group and in corpus order within.

    The keys are taken in as many parts as memory asks for; which part a key is in depends on the key alone.
    """
    num_parts = -(-len(sketches.reasons) // _SORTED_AT_ONCE)
    for part in range(num_parts):
        keys, numbers = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.int64)]
        for start, piece in sketches.keys(band):
            wanted = sketches.reasons[start : start + len(piece)] == KEPT
            if num_parts > 1:
                wanted &= piece % np.uint64(num_parts) == part
            indices = np.flatnonzero(wanted)
            keys.append(piece[indices])
            numbers.append(indices + start)
        key, number = np.concatenate(keys), np.concatenate(numbers)
        order = np.argsort(key)  # Not stable, which is slower: the few that share a key are put in order below.
        key, number = key[order], number[order]
        equal = np.flatnonzero(key[1:] == key[:-1])
        shared = np.union1d(equal, equal + 1)
        order = np.lexsort((number[shared], key[shared]))
        key, number = key[shared][order], number[shared][order]
        yield number, np.cumsum(np.concatenate([[0], key[1:] != key[:-1]])[: len(key)])


def _resolve(
    groups: tuple[np.ndarray, np.ndarray], sketches: _Sketches, reason: int, same: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> None:
    """Drop from each group what is the `same` as its first document, then what is the same as the next that stayed, and so on.

    A common key is no proof, so a group can hold several sets of duplicates; those that come late in a large group are
    found by another band.
    """
    number, group = groups
    for _ in range(_ROUNDS):
        is_first = np.concatenate([[True], group[1:] != group[:-1]])[: len(group)]
        firsts = number[is_first][np.cumsum(is_first) - 1]
        number, group, firsts = number[~is_first], group[~is_first], firsts[~is_first]
        if not len(number):
            return
        chunks = range(0, len(number), _COMPARED_AT_ONCE)
        dropped = np.concatenate([same(number[at : at + _COMPARED_AT_ONCE], firsts[at : at + _COMPARED_AT_ONCE]) for at in chunks])
        sketches.drop(reason, number[dropped], firsts[dropped])
        number, group = number[~dropped], group[~dropped]
