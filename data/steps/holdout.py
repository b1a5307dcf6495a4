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
# More than this share held out is rarely meant: of two shards the last one is half of the text.
_LARGE_SHARE = 0.25


@dataclass(frozen=True)
class Place:
    """Where a shard stands in the whole text, or in that of its source where sources are told apart."""

    shard: int = 0
    first_document: int = 0
    first_char: int = 0


START = Place()


@dataclass(frozen=True)
class Holdout:
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


def plan_holdout(rule: ValidationConfig, end: Place, where: str = "") -> Holdout:
    """Work out a section's rule for a text of this size: `end` is the place behind its last document. `where` begins a message.

    Raises:
        DataError: If nothing would be left to train on.
    """
    for unit, last, total, way in (
        ("shards", rule.last_shards, end.shard, "make shards smaller (data.shard_mib), or hold out a ratio"),
        ("documents", rule.last_documents, end.first_document, "or bring more text"),
    ):
        if last is not None and last >= total:
            said = f"{where}data.validation.last_{unit} = {last}: there are {total} {unit}, so nothing is left to train on."
            raise DataError(f"{said} Hold out fewer, {way}.")
    if rule.last_shards is not None:
        return Holdout(from_shard=end.shard - rule.last_shards)
    if rule.last_documents is not None:
        return Holdout(from_document=end.first_document - rule.last_documents)
    assert rule.ratio is not None, "checked by ValidationConfig"
    if end.first_document * rule.ratio >= _MIN_CHOSEN:
        return Holdout(share=rule.ratio)
    if not end.first_char:  # Of very many shuffled documents the characters are not counted. Any few of them are a fair choice.
        return Holdout(from_document=end.first_document - max(1, round(end.first_document * rule.ratio)))
    logger.info(
        "%s%d documents are too few to hold out a share of: the last %g of the text is held out", where, end.first_document, rule.ratio
    )
    return Holdout(from_char=min(max(1, end.first_char - round(end.first_char * rule.ratio)), end.first_char - 1))


def warn_of_large_share(held_out: int, total: int, rule: ValidationConfig) -> None:
    """Say that more is held out than anybody is likely to mean."""
    if held_out <= max(_LARGE_SHARE, 2 * (rule.ratio or 0)) * total:
        return
    named = next(name for name in ("last_documents", "ratio", "last_shards") if getattr(rule, name) is not None)
    said = f"{held_out:,} of {total:,} tokens are held out for validation ({held_out / total:.0%})"
    logger.warning("%s by data.validation.%s = %g. Is that meant?", said, named, getattr(rule, named))
