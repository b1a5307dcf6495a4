"""Sort all suffixes of a text, so that any passage is found by halving instead of reading all of it."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

_FIRST_SIZE = 16  # Characters of a passage that are looked at first.


def sort_suffixes(text: str) -> np.ndarray:
    """(characters,) where each suffix of `text` begins, the suffixes in order of their code points, as Python compares strings.

    Prefix doubling (Manber and Myers 1993, "Suffix arrays"): once suffixes are ordered by their first k characters, the ranks of those that
    begin k characters later order them by 2k. Only suffixes that are not told apart yet are sorted again (Larsson and Sadakane 2007).
    Takes some 45 bytes a character while it runs. int32 where that holds every place, else int64.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    length = len(codes)
    order = np.argsort(codes, kind="stable")
    # A rank is the slot in `order` of the first suffix of a group that looks the same so far; one more, so that 0 is behind the end.
    ranks = np.empty(length + 1, dtype=np.int64)
    ranks[length] = 0
    slots, keys, prefix = np.arange(length), codes[order].astype(np.int64), 1
    while len(slots):
        begins = np.ones(len(slots), dtype=bool)
        begins[1:] = keys[1:] != keys[:-1]
        ranks[order[slots]] = slots[np.maximum.accumulate(np.where(begins, np.arange(len(slots)), 0))] + 1
        alone = begins & np.append(begins[1:], True)
        slots = slots[~alone]
        suffixes = order[slots]
        keys = ranks[suffixes] * (length + 1) + ranks[np.minimum(suffixes + prefix, length)]
        sorting = np.argsort(keys, kind="stable")
        order[slots], keys = suffixes[sorting], keys[sorting]
        prefix *= 2
    return order.astype(np.int32) if length < 1 << 31 else order


def longest_matches(text: str, order: np.ndarray, query: str) -> tuple[np.ndarray, np.ndarray]:
    """For every character of `query`: how long the longest passage is that begins there and is in `text`, and one place where.

    `order` is what `sort_suffixes` made of `text`.

    Returns:
        (characters,) lengths and (characters,) places in `text`, which mean nothing where the length is 0.
    """
    lengths = np.zeros(len(query), dtype=np.int64)
    places = np.zeros(len(query), dtype=np.int64)
    length = place = 0
    for start in range(len(query)):
        if length and start - 1 + length == len(query):
            # The passage before went on to the end of the query, so this one, its rest, does too.
            length, place = length - 1, place + 1
        else:
            size = max(_FIRST_SIZE, length + 1)
            while (found := _match(text, order, query[start : start + size]))[0] == size:
                size *= 2
            length, place = found
        lengths[start], places[start] = length, place
    return lengths, places


def _match(text: str, order: np.ndarray, pattern: str) -> tuple[int, int]:
    """How many characters of a pattern stand somewhere in the text, from its first on, and one place where."""
    size = len(pattern)
    slot = bisect_left(order, pattern, key=lambda place: text[place : place + size])
    # Of all suffixes, one of the two beside the place where the pattern belongs has most in common with it.
    places = [int(place) for place in order[max(0, slot - 1) : slot + 1]]
    found = [(num_common(pattern, text[place : place + size]), place) for place in places]
    return max(found, key=lambda match: match[0], default=(0, 0))


def num_common(one: str, other: str) -> int:
    """How many characters two strings begin with in common, by halving: strings are compared faster than characters are looped over."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
