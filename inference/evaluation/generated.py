"""Texts that a model wrote: how much of them is copied, how varied they are, and (by `verse.py`) how verse keeps its rules."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.corpora.poems import form
from data.documents import DataError
from inference.evaluation import verse
from inference.evaluation.memorization import CorpusIndex

log = logging.getLogger(__name__)

_SHOWN_SPANS = 5
_NGRAM_SIZES = (1, 2, 4)  # of variety


@dataclass(frozen=True)
class Generated:
    """One text: what was given and what the model added."""

    prompt: str
    text: str


def read_generated(path: Path) -> list[Generated]:
    """The texts of a file: objects of `inference.generate --output FILE.jsonl`, or plain texts with blank lines between them.

    Raises:
        DataError: If the file holds something else, or no text.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: unreadable ({error}). Texts are UTF-8.") from error
    if path.suffix != ".jsonl":
        found = [Generated("", part.strip()) for part in content.split("\n\n") if part.strip()]
    else:
        found = []
        # Not splitlines: a text may hold other characters that end a line there (U+2028), and JSON has them as they are.
        for number, line in enumerate(content.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
                prompt, text = values.get("prompt") or "", values["text"]
            except (ValueError, KeyError, AttributeError):
                prompt = text = None
            if not isinstance(prompt, str) or not isinstance(text, str):
                raise DataError(f'{path}:{number}: is no object with "text", as inference.generate --output writes it.')
            found.append(Generated(prompt, text))
    if not found:
        raise DataError(f"{path}: has no text.")
    return found


def judge_texts(texts: Sequence[Generated], index: CorpusIndex, *, ngram_size: int, min_span: int) -> dict[str, Any]:
    """Figures of texts, sizes being those of `index.measure`; prompts count for verse only, whose first line they may be."""
    measured = [index.measure(one.text, ngram_size=ngram_size, min_span=min_span) for one in texts]
    characters = sum(len(one.text) for one in texts)
    ngrams = [max(0, len(one.text) - ngram_size + 1) for one in texts]
    copied_ngrams = sum((one.ngram_share or 0) * count for one, count in zip(measured, ngrams, strict=True))
    copied = sum(span.end - span.start for one in measured for span in one.spans)
    spans = sorted(
        ({"text": number, **asdict(span)} for number, one in enumerate(measured, start=1) for span in one.spans),
        key=lambda span: span["start"] - span["end"],
    )
    found: dict[str, Any] = {
        "corpus": str(index.facts),
        "texts": len(texts),
        "characters": characters,
        "copied": {
            "longest_run": max(one.longest_run for one in measured),
            "mean_longest_run": sum(one.longest_run for one in measured) / len(measured),
            "ngram_size": ngram_size,
            "ngram_share": copied_ngrams / sum(ngrams) if any(ngrams) else None,
            "min_span": min_span,
            "copied_share": copied / characters if characters else None,
        },
        "longest_passages": spans[:_SHOWN_SPANS],
        "variety": variety([one.text for one in texts]),
    }
    poems = [one.prompt + one.text for one in texts]
    if any(form(verse.verse_lines(poem)) in verse.FORMS for poem in poems):
        try:
            found |= verse.figures(poems)
        except DataError as error:  # An optional package; the other figures do not need it.
            log.warning("verse is not judged: %s", error)
            found["verse"] = None
    return found


def variety(texts: Sequence[str]) -> dict[str, float | None]:
    """Shares of n-grams of characters, white space left out; None where no text is that long.

    `distinct_n`: different n-grams over all texts, by their number (Li et al. 2016, "A diversity-promoting objective function").
    `repeated_n`: of a text's n-grams, those that it has already had, on average (Welleck et al. 2020, "seq-rep-n").
    """
    plain = ["".join(text.split()) for text in texts]
    found: dict[str, float | None] = {}
    for size in _NGRAM_SIZES:
        grams = [[text[start : start + size] for start in range(len(text) - size + 1)] for text in plain]
        every = [gram for one in grams for gram in one]
        found[f"distinct_{size}"] = len(set(every)) / len(every) if every else None
        repeated = [1 - len(set(one)) / len(one) for one in grams if one]
        found[f"repeated_{size}"] = sum(repeated) / len(repeated) if repeated else None
    return found
