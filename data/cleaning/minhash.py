"""Sketches of texts for finding duplicates: a hash of the whole, and MinHash over windows of characters or words.

Texts are compared by their Han characters and words only: white space, punctuation and letter case do not make two texts
different. MinHash: A. Broder, "On the resemblance and containment of documents", 1997.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from data.cleaning.words import IN_WORD, NO_LETTER, codes, kinds
from data.cleaning_config import NearConfig
from data.documents import batched

_BLOCK_CHARS = 16 << 10  # The hashes of a block stay in the processor's second-level cache.
_SLICE_CHARS = 1 << 20
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
    # Of a book the least value of all slices, so that it needs no more memory than a chapter.
    slices = ((text[at : at + _SLICE_CHARS], index) for index, text in enumerate(texts) for at in range(0, len(text), _SLICE_CHARS))
    for block in batched(slices, lambda piece: len(piece[0]), _BLOCK_CHARS):  # Never two slices of a text: each fills a block.
        indices = [index for _, index in block]
        result[indices] = np.minimum(result[indices], _sign_block([piece for piece, _ in block], config))
    return result


def band_keys(signature: np.ndarray, config: NearConfig) -> np.ndarray:
    """(texts, num_hashes) uint32 -> (bands, texts) uint64; texts with an equal key in a band are worth comparing."""
    rows = signature.reshape(len(signature), config.bands, config.rows).astype(np.uint64)
    keys = np.zeros((len(signature), config.bands), dtype=np.uint64)
    for row in range(config.rows):
        keys = (keys ^ rows[:, :, row]) * _MIX
        keys ^= keys >> np.uint64(29)
    return np.ascontiguousarray(keys.T)


def _sign_block(texts: Sequence[str], config: NearConfig) -> np.ndarray:
    """As `signatures` for a few texts, whose windows are hashed together: short texts would cost calls."""
    signed = np.full((len(texts), config.num_hashes), _EMPTY, dtype=np.uint32)
    hashes, counts = window_hashes(texts, config.ngram)
    filled = np.flatnonzero(counts)
    if not len(filled):
        return signed
    starts = (np.cumsum(counts) - counts)[filled]
    hashed = np.empty_like(hashes)
    least = np.empty((config.num_hashes, len(filled)), dtype=np.uint32)
    for number, (factor, offset) in enumerate(zip(*_hash_functions(config.num_hashes), strict=True)):
        np.multiply(hashes, factor, out=hashed)
        np.bitwise_xor(hashed, offset, out=hashed)
        np.minimum.reduceat(hashed, starts, out=least[number])
    signed[filled] = least.T
    return signed


def window_hashes(texts: Sequence[str], ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (windows of all texts,) uint32, evenly distributed, and (texts,) their number in each text."""
    units, text_of = _units([text.lower() for text in texts])
    num_letters = np.bincount(text_of, minlength=len(texts))

    # A text shorter than a window is filled up with zeros, which stand for no character, to be one.
    short = np.flatnonzero((num_letters > 0) & (num_letters < ngram))
    missing = ngram - num_letters[short]
    ends = np.repeat(np.cumsum(num_letters)[short], missing)
    units, text_of = np.insert(units, ends, 0), np.insert(text_of, ends, np.repeat(short, missing))

    num_windows = max(len(units) - ngram + 1, 0)
    hashes = np.zeros(num_windows, dtype=np.uint64)
    for offset in range(ngram):
        hashes *= _MIX
        hashes += units[offset : offset + num_windows]
    hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    within = text_of[:num_windows] == text_of[ngram - 1 :][:num_windows]  # Not across two texts.
    return (hashes[within] >> np.uint64(32)).astype(np.uint32), np.bincount(text_of[:num_windows][within], minlength=len(texts))


def _units(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return what windows are made of, (units,) uint64, and (units,) the text of each.

    A unit is a Han character, a kana, a hangul syllable; of alphabets a whole word, since any two English texts have most
    sequences of three letters in common.
    """
    letters = codes("".join(texts))
    text_of = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    kind = kinds()[letters]
    in_word = kind == IN_WORD
    begins = kind != NO_LETTER
    begins[1:] &= ~(in_word[1:] & in_word[:-1] & (text_of[1:] == text_of[:-1]))
    starts = np.flatnonzero(begins)
    if len(starts) == np.count_nonzero(kind):  # No word of two letters: the usual Chinese text.
        return letters[starts].astype(np.uint64), text_of[starts]
    place = np.arange(len(letters))
    place -= np.maximum.accumulate(np.where(begins, place, 0))  # In the unit; letters of very long words share the last place.
    values = letters * _PLACES[np.minimum(place, len(_PLACES) - 1)]
    values[kind == NO_LETTER] = 0
    return np.add.reduceat(values, starts), text_of[starts]


_PLACES = np.cumprod(np.array([1] + [0xD6E8FEB86659FD93] * 63, dtype=np.uint64), dtype=np.uint64)


@lru_cache(maxsize=8)
def _hash_functions(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Odd factors and offsets of hash functions on 32 bits; always the same, since sketches are kept on disk."""
    draws = np.random.Generator(np.random.PCG64(20251122)).integers(0, 1 << 32, size=(2, number), dtype=np.uint32)
    return draws[0] | np.uint32(1), draws[1]
