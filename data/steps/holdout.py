"""Which documents are held out of training."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
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
class Holdout:
    """The rule, with thresholds worked out. One is set, or nothing is held out."""

    from_document: int | None = None
    from_char: int | None = None
    share: float = 0.0

    def assign(self, documents: Iterable[Document], first: int, char: int) -> Iterator[tuple[SplitName, Document]]:
        """Yield documents with the split each belongs to; one that lies across a cut comes in two.

        `first` and `char` are how many documents and characters of the same source stand before them.
        """
        for index, document in enumerate(documents, start=first):
            end = char + len(document.text)
            if self.from_char is not None and char < self.from_char < end:
                yield from _cut(document, self.from_char - char)
            else:
                yield ("valid" if self._is_held_out(document, index, char) else "train"), document
            char = end

    def _is_held_out(self, document: Document, index: int, char: int) -> bool:
        if self.from_document is not None:
            return index >= self.from_document
        if self.from_char is not None:
            return char >= self.from_char
        digest = hashlib.blake2b(document.text.encode("utf-8"), digest_size=8).digest()
        return int.from_bytes(digest, "little") < self.share * 2**64


def _cut(document: Document, at: int) -> Iterator[tuple[SplitName, Document]]:
    """Cut behind the first line break from `at` on, so that no line is torn; at `at` if less than half of what is there would be left."""
    at = document.text.find("\n", at, (at + len(document.text)) // 2) + 1 or at
    yield "train", replace(document, text=document.text[:at])
    yield "valid", replace(document, text=document.text[at:])


def plan_holdout(rule: ValidationConfig, shards: Sequence[int], num_chars: int, where: str = "") -> Holdout:
    """Work out a section's rule for a text whose shards have so many documents. `where` begins a message.

    Raises:
        DataError: If nothing would be left to train on.
    """
    num_documents = sum(shards)
    for unit, last, total, way in (
        ("shards", rule.last_shards, len(shards), "make shards smaller (data.shard_mib, with data.shuffle), or hold out a ratio"),
        ("documents", rule.last_documents, num_documents, "or bring more text"),
    ):
        if last is not None and last >= total:
            said = f"{where}data.validation.last_{unit} = {last}: there are {total} {unit}, so nothing is left to train on."
            raise DataError(f"{said} Hold out fewer, {way}.")
    if rule.last_shards is not None:
        return Holdout(from_document=sum(shards[: -rule.last_shards]))
    if rule.last_documents is not None:
        return Holdout(from_document=num_documents - rule.last_documents)
    assert rule.ratio is not None, "checked by ValidationConfig"
    if num_documents * rule.ratio >= _MIN_CHOSEN:
        return Holdout(share=rule.ratio)
    if not num_chars:  # Of very many shuffled documents the characters are not counted. Any few of them are a fair choice.
        return Holdout(from_document=num_documents - max(1, round(num_documents * rule.ratio)))
    logger.info("%s%d documents are too few to hold out a share of: the last %g of the text is held out", where, num_documents, rule.ratio)
    return Holdout(from_char=min(max(1, num_chars - round(num_chars * rule.ratio)), num_chars - 1))


def warn_of_large_share(held_out: int, total: int, rule: ValidationConfig) -> None:
    """Say that more is held out than anybody is likely to mean."""
    if held_out <= max(_LARGE_SHARE, 2 * (rule.ratio or 0)) * total:
        return
    named = next(name for name in ("last_documents", "ratio", "last_shards") if getattr(rule, name) is not None)
    said = f"{held_out:,} of {total:,} tokens are held out for validation ({held_out / total:.0%})"
    logger.warning("%s by data.validation.%s = %g. Is that meant?", said, named, getattr(rule, named))
