"""How much of a text is copied from the text a model was trained on, by a suffix array over that text.

Which text that is, and where its suffix array is kept, is `training_text.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from inference.judgement.suffix_array import Matcher, sort_suffixes

BORDER = "\0"  # Between documents: no passage goes across it. A text in which it occurs is cut there.
_SHOWN_CHARS = 40


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` of a text, which are verbatim in the training text; `source` is one place where."""

    start: int
    end: int
    source: str


@dataclass(frozen=True)
class Copied:
    """How much of one text is verbatim in the training text."""

    characters: int
    longest_run: int
    """Characters of the longest passage."""
    ngram_size: int
    ngram_share: float | None
    """Of all runs of `ngram_size` characters, those that are in the training text; None for a text that is shorter."""
    min_span: int
    copied_share: float | None
    """Of all characters, those in verbatim passages of at least `min_span` characters; None for an empty text."""
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Facts:
    """Which text an index holds. `share` is below 1 where the text was too large and evenly spaced passages were taken."""

    identity: str
    split: str
    characters: int
    documents: int
    tokens: int
    tokens_of_split: int

    @property
    def share(self) -> float:
        """How much of the split's tokens the index holds."""
        return self.tokens / self.tokens_of_split if self.tokens_of_split else 1.0

    def __str__(self) -> str:
        whole = f"{self.characters:,} characters in {self.documents:,} documents"
        if self.tokens == self.tokens_of_split:
            return f"{whole}, the whole {self.split} split"
        return f"{whole}, {self.share:.2%} of the tokens of the {self.split} split; what is copied from the rest is not seen"


class CorpusIndex:
    """The training text with its suffix array."""

    def __init__(self, text: str, documents: np.ndarray, names: Sequence[str], facts: Facts, order: np.ndarray | None = None) -> None:
        """Take the text as documents with a border between them.

        Args:
            text: All documents.
            documents: (documents, 3) first character, number in its stream, index of the stream's name.
            names: Of the streams.
            facts: Which text it is.
            order: Its sorted suffixes, None to sort them now.
        """
        self.text, self.documents, self.names, self.facts = text, documents, list(names), facts
        self.order = sort_suffixes(text) if order is None else order
        self._matcher = Matcher(text, self.order)

    @classmethod
    def of_texts(cls, texts: Sequence[str], name: str = "text") -> CorpusIndex:
        """An index of documents at hand, in memory."""
        starts = np.cumsum([0, *(len(text) + 1 for text in texts)])[:-1]
        documents = np.array([[start, number, 0] for number, start in enumerate(starts)], dtype=np.int64).reshape(-1, 3)
        text = BORDER.join(texts)
        facts = Facts(hashlib.sha256(text.encode("utf-8")).hexdigest(), "given", len(text), len(texts), len(text), len(text))
        return cls(text, documents, [name], facts)

    def longest_matches(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """For every character: the length of the longest passage of the training text that begins there, and one place of it.

        Returns:
            (characters,) lengths and (characters,) places in `self.text`, which mean nothing where the length is 0.
        """
        pieces = [self._matcher.longest_matches(piece) for piece in text.split(BORDER)]
        gap = np.zeros(1, dtype=np.int64)
        lengths, places = ([part for found in pieces for part in (found[which], gap)][:-1] for which in (0, 1))
        return np.concatenate(lengths), np.concatenate(places)

    def measure(self, text: str, *, ngram_size: int = 10, min_span: int = 20) -> Copied:
        """How much of `text` is verbatim in the training text.

        Args:
            text: What was generated, without its prompt.
            ngram_size: Characters of an n-gram.
            min_span: Shorter passages are no spans: a handful of characters in common is language, not copying.

        Raises:
            ValueError: If a size is less than 1.
        """
        for name, value in (("ngram_size", ngram_size), ("min_span", min_span)):
            if value < 1:
                raise ValueError(f"{name} = {value}; it must be 1 or more.")
        lengths, places = self.longest_matches(text)
        num_ngrams = len(text) - ngram_size + 1
        spans = tuple(self._spans(lengths, places, min_span))
        return Copied(
            characters=len(text),
            longest_run=int(lengths.max(initial=0)),
            ngram_size=ngram_size,
            ngram_share=int((lengths >= ngram_size).sum()) / num_ngrams if num_ngrams > 0 else None,
            min_span=min_span,
            copied_share=sum(span.end - span.start for span in spans) / len(text) if text else None,
            spans=spans,
        )

    def _spans(self, lengths: np.ndarray, places: np.ndarray, min_span: int) -> Iterator[Span]:
        """Passages that no longer one contains. Where two overlap, the second is told from the end of the first on."""
        covered = 0
        for start in np.flatnonzero(lengths >= min_span).tolist():
            end = start + int(lengths[start])
            if end > covered:
                first = max(start, covered)
                yield Span(first, end, self.source(int(places[start]) + first - start))
                covered = end

    def source(self, place: int) -> str:
        """The document that a place in the training text is in: stream, number from 0 (as `data.inspect` counts), first line."""
        row = int(np.searchsorted(self.documents[:, 0], place, side="right")) - 1
        start, number, stream = self.documents[row].tolist()
        head = self.text[start : start + _SHOWN_CHARS].split(BORDER)[0].strip().split("\n")[0]
        return f"{self.names[stream]}, document {number}: {head}"


def report(index: CorpusIndex, copied: Copied) -> dict[str, Any]:
    """A measure as JSON values, with the text that it was held against."""
    facts = index.facts
    return {**asdict(copied), "corpus": {**asdict(facts), "share": facts.share}}
