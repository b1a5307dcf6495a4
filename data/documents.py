"""What flows between the steps of a preparation, and the one error its users see."""

from dataclasses import dataclass, field


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
