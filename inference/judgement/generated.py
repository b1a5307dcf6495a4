"""Texts that a model wrote: how much of them is copied, how varied they are, and how verse keeps its rules."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.corpora.poems import form
from data.documents import DataError
from inference.judgement import repetition, verse
from inference.judgement.memorization import CorpusIndex

log = logging.getLogger(__name__)

_SHOWN_SPANS = 5


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
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: unreadable ({error}). Texts are UTF-8.") from error
    if path.suffix != ".jsonl":
        found = [Generated("", part.strip()) for part in content.replace("\r\n", "\n").split("\n\n") if part.strip()]
    else:
        found = []
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                values = json.loads(line)
                found.append(Generated(str(values.get("prompt", "")), values["text"]))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise DataError(f'{path}:{number}: is no object with "text", as inference.generate --output writes it.') from None
    if not found:
        raise DataError(f"{path}: has no text.")
    return found


def judge_texts(texts: Sequence[Generated], index: CorpusIndex, *, ngram_size: int, min_span: int) -> dict[str, Any]:
    """Figures of texts; prompts count for verse only, whose first line they may be.

    Args:
        texts: From `read_generated`.
        index: Of the training text.
        ngram_size: Characters of an n-gram.
        min_span: Characters of a copied passage.
    """
    measured = [index.measure(one.text, ngram_size=ngram_size, min_span=min_span) for one in texts]
    characters = sum(one.characters for one in measured)
    ngrams = [(one.ngram_share, one.characters - ngram_size + 1) for one in measured if one.ngram_share is not None]
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
            "ngram_share": sum(share * count for share, count in ngrams) / sum(count for _, count in ngrams) if ngrams else None,
            "min_span": min_span,
            "copied_share": copied / characters if characters else None,
        },
        "longest_passages": spans[:_SHOWN_SPANS],
        "variety": repetition.figures([one.text for one in texts]),
    }
    poems = [one.prompt + one.text for one in texts]
    if any(form("，".join(verse.verse_lines(poem))) in verse.FORMS for poem in poems):
        found |= _verse(poems)
    return found


def _verse(poems: Sequence[str]) -> dict[str, Any]:
    try:
        figures = verse.figures(poems)
    except DataError as error:  # An optional package; the other figures do not need it.
        log.warning("verse is not judged: %s", error)
        return {"verse": None}
    return {"tones_and_rhymes": figures["system"], "forms": {"poems": figures["forms"]}, "verse": figures["by_form"]}
