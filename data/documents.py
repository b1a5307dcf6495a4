"""What flows between the steps of a preparation, and the one error its users see."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


class DataError(ValueError):
    """Something about the data that its owner can change. The message is one complete line: where, what, and what to do."""


@dataclass(frozen=True)
class Document:
    """One text with its origin. Steps never change a document: they make another one, or none."""

    text: str
    source: str
    """Where it came from: file and position in it, as a person would look it up."""
    meta: dict[str, str] = field(default_factory=dict)
    """Further fields of the source (title, author, form ...), as strings."""
    num_replaced: int = 0
    """Places that were not readable and are U+FFFD now."""
    of_source: int = 0
    """Index of its source in the configuration, where sources are shuffled into one and each must be scored by itself."""


def batched(items: Iterable[T], size: Callable[[T], int], enough: int) -> Iterator[list[T]]:
    """Yield neighbouring items together as soon as their sizes add up to `enough`, and the rest."""
    batch: list[T] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if total >= enough:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch
