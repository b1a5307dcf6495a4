"""Which documents are held out of training."""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from data.config import ValidationConfig
from data.documents import DataError, Document

logger = logging.getLogger(__name__)

SplitName = Literal["train", "valid"]

# With fewer held-out documents than this a random choice of them would be a poor sample, or none at all.
_MIN_CHOSEN = 10


@dataclass(frozen=True)
class Place:
    """Where a shard stands in the whole corpus."""

    shard: int
    first_document: int
    first_char: int


@dataclass(frozen=True)
class Split:
    """The rule, with thresholds worked out. Exactly one is set."""

    from_shard: int | None = None
    from_document: int | None = None
    from_char: int | None = None
    share: float | None = None

    def assign(self, documents: Iterable[Document], place: Place) -> Iterator[tuple[SplitName, Document]]:
        """Yield each document of a shard with the split it belongs to; one that lies across a cut comes in two."""
        char = place.first_char
        for index, document in enumerate(documents, start=place.first_document):
            end = char + len(document.text)
            if self.from_char is not None and char < self.from_char < end:
                yield from _cut(document, self.from_char - char)
            else:
                yield ("valid" if self._is_held_out(document, place.shard, index, char) else "train"), document
            char = end

    def _is_held_out(self, document: Document, shard: int, index: int, char: int) -> bool:
        if self.from_shard is not None:
            return shard >= self.from_shard
        if self.from_document is not None:
            return index >= self.from_document
        if self.from_char is not None:
            return char >= self.from_char
        assert self.share is not None, "one of the thresholds is set"
        digest = hashlib.blake2b(document.text.encode("utf-8"), digest_size=8).digest()
        return int.from_bytes(digest, "little") < self.share * 2**64


def _cut(document: Document, at: int) -> Iterator[tuple[SplitName, Document]]:
    """Cut behind the first line break from `at` on, so that no line is torn; at `at` where there is none."""
    line_break = document.text.find("\n", at)
    at = line_break + 1 if 0 <= line_break < len(document.text) - 1 else at
    yield "train", replace(document, text=document.text[:at])
    yield "valid", replace(document, text=document.text[at:])


def plan_split(rule: ValidationConfig, num_documents: int, num_chars: int, num_shards: int) -> Split:
    """Work out a section's rule for a corpus of this size.

    Raises:
        DataError: If nothing would be left to train on.
    """
    if rule.last_shards is not None:
        if rule.last_shards >= num_shards:
            raise DataError(
                f"data.validation.last_shards = {rule.last_shards}: the text fills {num_shards} shards, so nothing is left to"
                " train on. Hold out fewer, make shards smaller (data.shard_mib), or hold out a ratio."
            )
        return Split(from_shard=num_shards - rule.last_shards)
    if rule.last_documents is not None:
        if rule.last_documents >= num_documents:
            raise DataError(
                f"data.validation.last_documents = {rule.last_documents}: there are {num_documents} documents, so nothing is"
                " left to train on. Hold out fewer, or bring more text."
            )
        return Split(from_document=num_documents - rule.last_documents)
    assert rule.ratio is not None, "checked by ValidationConfig"
    if num_documents * rule.ratio >= _MIN_CHOSEN:
        return Split(share=rule.ratio)
    logger.info("%d documents are too few to hold out a share of them: the last %g of the text is held out", num_documents, rule.ratio)
    return Split(from_char=min(max(1, num_chars - round(num_chars * rule.ratio)), num_chars - 1))
