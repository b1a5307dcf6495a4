"""Sketches of texts for finding duplicates: a hash of the whole, and MinHash over windows of characters.

Texts are compared by their letters, digits and Han characters only: white space, punctuation and letter case do not
make two texts different. MinHash: A. Broder, "On the resemblance and containment of documents", 1997.
"""

import hashlib
import sys
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from data.duplicates_config import NearConfig

_BLOCK_CHARS = 16 << 10  # The hashes of a block stay in the processor's second-level cache.
_EMPTY = np.uint32(0xFFFFFFFF)
_MIX = np.uint64(0x9E3779B97F4A7C15)


def exact_hashes(texts: Sequence[str]) -> np.ndarray:
    """(texts, 2) uint64: 128 bits of each text's hash, white space aside."""
    digests = [hashlib.blake2b("".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts]
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)


def signatures(texts: Sequence[str], config: NearConfig) -> np.ndarray:
    """(texts, num_hashes) uint32: for each hash function the least value over the text's windows.

    A text without letters has all ones. One shorter than a window is one window.
    """
    result = np.full((len(texts), config.num_hashes), _EMPTY, dtype=np.uint32)
    first = 0
    while first < len(texts):
        size, last = len(texts[first]), first + 1
        while last < len(texts) and size + len(texts[last]) <= _BLOCK_CHARS:
            size += len(texts[last])
            last += 1
        _sign_block(texts[first:last], config, result[first:last])
        first = last
    return result


def band_keys(signature: np.ndarray, config: NearConfig) -> np.ndarray:
    """(texts, num_hashes) uint32 -> (bands, texts) uint64; texts with an equal key in a band are worth comparing."""
    rows = signature.reshape(len(signature), config.bands, config.rows).astype(np.uint64)
    keys = np.zeros((len(signature), config.bands), dtype=np.uint64)
    for row in range(config.rows):
        keys = (keys ^ rows[:, :, row]) * _MIX
        keys ^= keys >> np.uint64(29)
    return np.ascontiguousarray(keys.T)


@lru_cache(maxsize=1)
def _is_letter() -> np.ndarray:
    """(code points,) bool, 1.1 MB."""
    return np.array([chr(code).isalnum() for code in range(sys.maxunicode + 1)])


def _sign_block(texts: Sequence[str], config: NearConfig, out: np.ndarray) -> None:
    """Fill `out` (texts, num_hashes) for a few texts, whose windows are hashed together: short texts would cost calls."""
    hashes, counts = _window_hashes(texts, config.ngram)
    filled = np.flatnonzero(counts)
    if not len(filled):
        return
    starts = (np.cumsum(counts) - counts)[filled]
    hashed = np.empty_like(hashes)
    least = np.empty((config.num_hashes, len(filled)), dtype=np.uint32)
    for number, (factor, offset) in enumerate(zip(*_hash_functions(config.num_hashes), strict=True)):
        np.multiply(hashes, factor, out=hashed)
        np.bitwise_xor(hashed, offset, out=hashed)
        np.minimum.reduceat(hashed, starts, out=least[number])
    out[filled] = least.T


def _window_hashes(texts: Sequence[str], ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (windows of all texts,) uint32, evenly distributed, and (texts,) their number in each text."""
    lowered = [text.lower() for text in texts]
    codes = np.frombuffer("".join(lowered).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    text_of = np.repeat(np.arange(len(texts)), [len(text) for text in lowered])
    letter = _is_letter()[codes]
    codes, text_of = codes[letter].astype(np.uint64), text_of[letter]
    num_letters = np.bincount(text_of, minlength=len(texts))

    # A text shorter than a window is filled up with zeros, which stand for no character, to be one.
    short = np.flatnonzero((num_letters > 0) & (num_letters < ngram))
    missing = ngram - num_letters[short]
    ends = np.repeat(np.cumsum(num_letters)[short], missing)
    codes, text_of = np.insert(codes, ends, 0), np.insert(text_of, ends, np.repeat(short, missing))

    num_windows = max(len(codes) - ngram + 1, 0)
    hashes = np.zeros(num_windows, dtype=np.uint64)
    for offset in range(ngram):
        hashes *= _MIX
        hashes += codes[offset : offset + num_windows]
    hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    within = text_of[:num_windows] == text_of[ngram - 1 :][:num_windows]  # Not across two texts.
    return (hashes[within] >> np.uint64(32)).astype(np.uint32), np.bincount(text_of[:num_windows][within], minlength=len(texts))


@lru_cache(maxsize=8)
def _hash_functions(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Odd factors and offsets of hash functions on 32 bits; always the same, since sketches are kept on disk."""
    draws = np.random.Generator(np.random.PCG64(20251122)).integers(0, 1 << 32, size=(2, number), dtype=np.uint32)
    return draws[0] | np.uint32(1), draws[1]
