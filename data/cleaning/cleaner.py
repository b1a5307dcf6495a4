"""Clean texts by the rules that a configuration lists, and account for what each of them did.

    "clean": [{"rule": "unicode"}, {"rule": "min_length", "chars": 200}]

The rules themselves are `rules.py`. A missing list means `cleaning_config.DEFAULT_RULES`, an empty one no cleaning.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from data import cleaning_config
from data.cleaning import rules
from data.documents import Document

_NUM_SAMPLES = 5
_SAMPLE_CHARS = 200


Rules = Mapping[str, Callable[[str], str | None]]
"""What to apply to each text, in order, under the name it is accounted by."""


@dataclass
class RuleCount:
    """What one rule did. Counts add up over pieces of a corpus."""

    documents_in: int = 0
    documents_changed: int = 0
    documents_dropped: int = 0
    chars_in: int = 0
    chars_out: int = 0
    samples: list[dict[str, str]] = field(default_factory=list)
    """The first dropped texts, shortened, with their source."""

    def add(self, other: "RuleCount") -> None:
        """Add the counts of a later piece of the corpus."""
        for count in fields(self):
            setattr(self, count.name, getattr(self, count.name) + getattr(other, count.name))
        del self.samples[_NUM_SAMPLES:]


def build_rules(section: Sequence[Mapping[str, Any]] | None) -> Rules:
    """Make the rules of a configuration's list; None stands for the default rules.

    A rule that is listed twice is accounted as "name" and "name 2".

    Raises:
        ConfigError: With every unknown rule, unknown or missing parameter, and value out of range.
    """
    times: Counter[str] = Counter()
    named = {}
    for rule, parameters in cleaning_config.make_rules(section):
        times[rule] += 1
        named[rule if times[rule] == 1 else f"{rule} {times[rule]}"] = partial(getattr(rules, rule), parameters)
    return named


class Cleaner:
    """Applies rules to documents and counts. One per piece of work; add the counts (`RuleCount.add`) in the pieces' order."""

    def __init__(self, chosen: Rules) -> None:
        self._rules = chosen
        self.counts = {name: RuleCount() for name in chosen}

    def clean(self, document: Document) -> Document | None:
        """Return the cleaned document, None if a rule dropped it or left nothing of it."""
        text = document.text
        for name, apply in self._rules.items():
            count = self.counts[name]
            count.documents_in += 1
            count.chars_in += len(text)
            cleaned = apply(text)
            if cleaned is None or not cleaned.strip():
                count.documents_dropped += 1
                if len(count.samples) < _NUM_SAMPLES:
                    count.samples.append({"source": document.source, "text": excerpt(text)})
                return None
            count.documents_changed += cleaned != text
            count.chars_out += len(cleaned)
            text = cleaned
        return document if text is document.text else replace(document, text=text)


def excerpt(text: str) -> str:
    """The beginning of a text on one line."""
    text = " ".join(text[: 4 * _SAMPLE_CHARS].split())
    return text if len(text) <= _SAMPLE_CHARS else text[:_SAMPLE_CHARS] + "…"
