"""How much of a text is copied from the text a model was trained on.

All suffixes of that text are sorted, so that any passage is found by halving instead of reading all of it. Which text that is, and where
its suffixes are kept, is `training_text.py`.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

BORDER = "\0"  # Between documents: no passage goes across it. A text in which it occurs is cut there.
_NOWHERE = "\ud800"  # Half of a character, which no training text has.
NGRAM_SIZE = 10
_SHOWN_CHARS = 40
_FIRST_SIZE = 16  # Characters of a passage that are looked at first.


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

    def __str__(self) -> str:
        whole = f"{self.characters:,} characters in {self.documents:,} documents"
        if self.tokens == self.tokens_of_split:
            return f"{whole}, the whole train split"
        share = self.tokens / self.tokens_of_split
        return f"{whole}, {share:.2%} of the tokens of the train split; what is copied from the rest is not seen"


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
        """How long the longest passage of the training text is that begins at every character of `text`, and one place where it is.

        Returns:
            (characters,) lengths and (characters,) places, which mean nothing where the length is 0.
        """
        query = text.replace(BORDER, _NOWHERE)
        lengths = np.zeros(len(query), dtype=np.int64)
        places = np.zeros(len(query), dtype=np.int64)
        length = place = 0
        for start in range(len(query)):
            if length and start - 1 + length == len(query):
                # The passage before went on to the end of the query, so this one, its rest, does too.
                length, place = length - 1, place + 1
            else:
                size = max(_FIRST_SIZE, length + 1)
                while (found := self._match(query[start : start + size]))[0] == size:
                    size *= 2
                length, place = found
            lengths[start], places[start] = length, place
        return lengths, places

    def _match(self, pattern: str) -> tuple[int, int]:
        """How many characters of a pattern stand somewhere in the text, from its first on, and one place where."""
        size = len(pattern)
        slot = bisect_left(self.order, pattern, key=lambda place: self.text[place : place + size])
        # Of all suffixes, one of the two beside the place where the pattern belongs has most in common with it.
        places = [int(place) for place in self.order[max(0, slot - 1) : slot + 1]]
        found = [(num_common(pattern, self.text[place : place + size]), place) for place in places]
        return max(found, key=lambda match: match[0], default=(0, 0))

    def measure(self, text: str, *, ngram_size: int = NGRAM_SIZE, min_span: int = 20) -> Copied:
        """How much of `text` is verbatim in the training text.

        Args:
            text: What was generated, without its prompt.
            ngram_size: Characters of an n-gram.
            min_span: Shorter passages are no spans: a handful of characters in common is language, not copying.
        """
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
