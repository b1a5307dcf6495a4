"""Seeded order without a table: a permutation of any size, one element at a time.

A shuffled array of the windows of a 45-billion-token corpus would cost every rank 180 MB per epoch; this costs nothing, and
any element is found without the ones before it, which is what makes resuming exact at every sample. This file imports no numpy,
since whatever checks a configuration imports it.
"""

from collections.abc import Sequence

_MASK = (1 << 64) - 1
_ROUNDS = 6


Ranges = Sequence[tuple[int, int]]
"""Of sample indices: the first, and the one behind the last; in ascending order, apart from each other or touching."""


def mix(*values: int) -> int:
    """Hash whole numbers to 64 bits that look random (the finalizer of splitmix64, applied in turn)."""
    state = 0
    for value in values:
        state = (state + value + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def permute(index: int, size: int, key: int) -> int:
    """Return where a permutation of range(size), chosen by `key`, sends `index`.

    A Feistel network permutes the next power of four; results beyond `size` are sent through it again until they fall inside
    (cycle walking), which keeps it a permutation.
    """
    assert 0 <= index < size, f"index {index} of a permutation of {size}"
    half_bits = ((size - 1).bit_length() + 1) // 2
    half_mask = (1 << half_bits) - 1
    while True:
        left, right = index >> half_bits, index & half_mask
        for turn in range(_ROUNDS):
            left, right = right, left ^ (mix(key, turn, right) & half_mask)
        index = left << half_bits | right
        if index < size:
            return index


def place(number: int, skipped: Ranges) -> int:
    """The index of a run's sample `number` (0, 1, 2 ...) in the order of all samples, some of which it leaves out."""
    for first, end in skipped:
        if number < first:
            break
        number += end - first
    return number
