"""How much of a text is copied from the text a model was trained on, by a suffix array over that text.

Which text that is, and where its suffix array is kept, is `training_text.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from inference.judgement.suffix_array import longest_matches

BORDER = "\0"  # Between documents: no passage goes across it. A text in which it occurs is cut there.
_NOWHERE = "\ud800"  # Half of a character, which no training text has.
NGRAM_SIZE = 10
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

    longest_run: int
    """Characters of the longest passage."""
    ngram_share: float | None
    """Of all n-grams of characters, those that are in the training text; None for a text that is shorter than one."""
    copied_share: float | None
    """Of all characters, those in `spans`; None for an empty text."""
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Facts:
    """Which text an index holds: all of a store's training text, or evenly spaced passages where that was too large."""

    identity: str
    characters: int
    documents: int
    tokens: int
    tokens_of_split: int

    @property
    def share(self) -> float:
        """How much of the training text's tokens the index holds."""
        return self.tokens / self.tokens_of_split if self.tokens_of_split else 1.0

    def __str__(self) -> str:
        whole = f"{self.characters:,} characters in {self.documents:,} documents"
        if self.tokens == self.tokens_of_split:
            return f"{whole}, the whole train split"
        return f"{whole}, {self.share:.2%} of the tokens of the train split; what is copied from the rest is not seen"


@dataclass(frozen=True)
class CorpusIndex:
    """The training text, documents with a border between them, and its suffix array."""

    text: str
    documents: np.ndarray
    """(documents, 3) first character, number in its stream, index of the stream's name."""
    names: Sequence[str]
    """Of the streams."""
    facts: Facts
    order: np.ndarray
    """From `sort_suffixes`."""

    def longest_matches(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Lengths and places, by `suffix_array.longest_matches`, of the passages that begin at every character of `text`."""
        return longest_matches(self.text, self.order, text.replace(BORDER, _NOWHERE))

    def measure(self, text: str, *, ngram_size: int = NGRAM_SIZE, min_span: int = 20) -> Copied:
        """How much of `text` is verbatim in the training text.

        Args:
            text: What was generated, without its prompt.
            ngram_size: Characters of an n-gram, 1 or more.
            min_span: Shorter passages are no spans: a handful of characters in common is language, not copying.
        """
        assert ngram_size >= 1, f"ngram_size = {ngram_size}"
        assert min_span >= 1, f"min_span = {min_span}"
        lengths, places = self.longest_matches(text)
        num_ngrams = len(text) - ngram_size + 1
        spans = tuple(self._spans(lengths, places, min_span))
        return Copied(
            longest_run=int(lengths.max(initial=0)),
            ngram_share=int((lengths >= ngram_size).sum()) / num_ngrams if num_ngrams > 0 else None,
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
