"""Samples that a run leaves out: after a spike of the loss it goes back, and reads on behind what it had read."""

from __future__ import annotations

from collections.abc import Sequence

Ranges = Sequence[tuple[int, int]]
"""Of sample indices: the first, and the one behind the last; in ascending order, apart from each other or touching."""


def place(number: int, skipped: Ranges) -> int:
    """The index of a run's sample number `number` (0, 1, 2 ...) in the order of all samples."""
    for first, end in skipped:
        if number < first:
            break
        number += end - first
    return number
