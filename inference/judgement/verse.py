"""Judge quatrains (绝句) and regulated verse (律诗): line lengths, rhyme, tonal pattern.

The rules are those of 王力, 诗词格律 (1962), for verse that rhymes in the level tone. Judged strictly are the second, fourth and sixth
characters and the last; the others are free (一三五不论) but for what this file names. A character that may be read in both tones, or
that the table does not have, breaks no rule. Tones and rhymes are those of `rhymes.py`.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from data.corpora.poems import clauses, form
from inference.judgement.rhymes import LEVEL, OBLIQUE, SYSTEM, rhymes, tone_of_group, tones

FORMS = ("五言绝句", "七言绝句", "五言律诗", "七言律诗")
_SENTENCE_END = re.compile(r"[，。？！；]\s*$")
_OPPOSITE = {LEVEL: OBLIQUE, OBLIQUE: LEVEL}
# The four kinds of lines, by the tone of the second character (of the fourth where a line has seven) and of the last.
_LINES = {
    (OBLIQUE, OBLIQUE): "仄仄平平仄",
    (OBLIQUE, LEVEL): "仄仄仄平平",
    (LEVEL, OBLIQUE): "平平平仄仄",
    (LEVEL, LEVEL): "平平仄仄平",
}


@dataclass(frozen=True)
class Verdict:
    """What one poem keeps of the rules of its form."""

    form: str
    pattern: str
    """The pattern it comes closest to: 平起 or 仄起 by its second character, 首句入韵 or 首句不入韵 by its first line's end."""
    rhyme: str | None
    """The group that all even lines rhyme in; None if there is none."""
    first_line_rhymes: bool
    wrong_tones: tuple[tuple[int, int], ...]
    """(line, character), from 1, where the tone is not the pattern's."""
    lone_level: tuple[int, ...]
    """孤平: lines of 平平仄仄平 with no level tone but the second character's and the rhyme's."""
    three_level: tuple[int, ...]
    """三平尾: lines that end in three level tones."""
    not_opposed: tuple[int, ...]
    """失对: second lines of couplets whose second character has the tone of the line before."""
    not_linked: tuple[int, ...]
    """失粘: first lines of later couplets whose second character has not the tone of the line before."""
    unknown: int
    """Characters that the table does not have."""

    @property
    def keeps_tones(self) -> bool:
        """Whether no tonal rule is broken."""
        return not (self.wrong_tones or self.lone_level or self.three_level or self.not_opposed or self.not_linked)

    @property
    def is_regulated(self) -> bool:
        """Whether it rhymes in the level tone and keeps the tones: verse of the modern style (近体)."""
        return self.keeps_tones and self.rhyme is not None and tone_of_group(self.rhyme) == LEVEL


def verse_lines(text: str) -> list[str]:
    """The lines of a poem without punctuation; a title or an author on a line of its own, which ends in none, is left out."""
    written = [line for line in text.splitlines() if _SENTENCE_END.search(line)] or text.splitlines()
    return clauses("\n".join(written))


def judge(lines: Sequence[str]) -> Verdict | None:
    """Hold a poem against the rules of its form.

    Args:
        lines: From `verse_lines`.

    Returns:
        None if it is no quatrain or regulated verse: not four or eight lines of five or of seven characters.

    Raises:
        DataError: If a package is missing.
    """
    kind = form(lines)
    if kind not in FORMS:
        return None
    read = [[tones(character) for character in line] for line in lines]
    common = _common_rhyme(lines[1::2])
    first_rhymes = common is not None and common in rhymes(lines[0][-1])
    found = [(_wrong(read, pattern), pattern) for pattern in _patterns(len(lines))]
    # Where a last character may be read in both tones, the rhyme tells which pattern is meant.
    wrong, pattern = min(found, key=lambda one: (len(one[0]), (one[1][0][1] == LEVEL) != first_rhymes))
    # Number of a line, from 2 -> how its second character is to that of the line before.
    differs = {number: _differ(read[number - 2][1], read[number - 1][1]) for number in range(2, len(lines) + 1)}
    return Verdict(
        form=kind,
        pattern=("平起" if (pattern[0][0] == LEVEL) == (len(lines[0]) == 5) else "仄起")
        + ("首句入韵" if pattern[0][1] == LEVEL else "首句不入韵"),
        rhyme=common,
        first_line_rhymes=first_rhymes,
        wrong_tones=tuple(wrong),
        lone_level=tuple(
            number
            for number, (one, kind_of_line) in enumerate(zip(read, pattern, strict=True), start=1)
            if kind_of_line == (LEVEL, LEVEL) and one[-5] == one[-3] == {OBLIQUE}
        ),
        three_level=tuple(number for number, one in enumerate(read, start=1) if one[-3] == one[-2] == one[-1] == {LEVEL}),
        not_opposed=tuple(number for number in range(2, len(lines) + 1, 2) if differs[number] is False),
        not_linked=tuple(number for number in range(3, len(lines) + 1, 2) if differs[number]),
        unknown=sum(not tone for one in read for tone in one),
    )


def _patterns(num_lines: int) -> list[list[tuple[str, str]]]:
    """The four patterns of a form, each line as its key in `_LINES`: lines of a couplet are opposed (对), couplets are linked (粘)."""
    found = []
    for first, end in itertools.product((OBLIQUE, LEVEL), repeat=2):
        # Tones of the second character (of five) and of the last, line by line.
        begins = [first if number % 4 in (0, 3) else _OPPOSITE[first] for number in range(num_lines)]
        ends = [end, *(LEVEL if number % 2 else OBLIQUE for number in range(1, num_lines))]
        found.append(list(zip(begins, ends, strict=True)))
    return found


def _wrong(read: Sequence[Sequence[frozenset[str]]], pattern: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
    """(line, character), from 1, of tones that are not the pattern's and not made good (拗救)."""
    found = []
    for number, (line, kind) in enumerate(zip(read, pattern, strict=True)):
        wanted = _LINES[kind]
        front = len(line) - 5
        places = [(1 + front, wanted[1]), (3 + front, wanted[3]), (4 + front, wanted[4])]
        if front:
            places.insert(0, (1, _OPPOSITE[wanted[1]]))
        below = read[number + 1] if number % 2 == 0 else None
        for place, tone in places:
            if not _may_be(line[place], tone) and not (place == 3 + front and _is_made_good(line, below, wanted)):
                found.append((number + 1, place + 1))
    return found


def _is_made_good(line: Sequence[frozenset[str]], below: Sequence[frozenset[str]] | None, wanted: str) -> bool:
    """Whether a wrong fourth character of five is answered: 平平仄平仄 in the line itself, 仄仄平仄仄 by a level third in the next."""
    if wanted == _LINES[LEVEL, OBLIQUE]:
        return _may_be(line[-3], OBLIQUE) and _may_be(line[-5], LEVEL)
    return wanted == _LINES[OBLIQUE, OBLIQUE] and below is not None and _may_be(below[-3], LEVEL)


def _common_rhyme(lines: Sequence[str]) -> str | None:
    """The group of all last characters, a level one if there is a choice; the same character twice is no rhyme."""
    last = [line[-1] for line in lines]
    if len(set(last)) < len(last):
        return None
    groups = frozenset.intersection(*map(rhymes, last))
    return min(groups, key=lambda group: (tone_of_group(group) != LEVEL, group), default=None)


def _may_be(found: frozenset[str], tone: str) -> bool:
    return not found or tone in found


def _differ(one: frozenset[str], other: frozenset[str]) -> bool | None:
    """Whether two characters have different tones; None where one of them may be read in both, or is unknown."""
    return one != other if len(one) == len(other) == 1 else None


def figures(texts: Iterable[str]) -> dict[str, Any]:
    """How many poems there are of each form, and of those that can be judged how many keep each rule.

    Raises:
        DataError: If a package is missing.
    """
    poems = [verse_lines(text) for text in texts]
    verdicts = [verdict for poem in poems if (verdict := judge(poem)) is not None]
    kinds = Counter(map(form, poems))
    by_form = {kind: _shares([one for one in verdicts if one.form == kind]) for kind in FORMS if kinds[kind]}
    return {"tones_and_rhymes": SYSTEM, "forms": {"poems": dict(kinds)}, "verse": by_form}


def _shares(verdicts: Sequence[Verdict]) -> dict[str, float | int]:
    def share(keeps: Iterable[bool]) -> float:
        return sum(keeps) / len(verdicts)

    return {
        "poems": len(verdicts),
        "rhyme": share(one.rhyme is not None for one in verdicts),
        "tones": share(one.keeps_tones for one in verdicts),
        "regulated": share(one.is_regulated for one in verdicts),
        "first line rhymes": share(one.first_line_rhymes for one in verdicts),
        "wrong tones per poem": sum(len(one.wrong_tones) for one in verdicts) / len(verdicts),
        "孤平": share(bool(one.lone_level) for one in verdicts),
        "三平尾": share(bool(one.three_level) for one in verdicts),
        "失对": share(bool(one.not_opposed) for one in verdicts),
        "失粘": share(bool(one.not_linked) for one in verdicts),
        "characters not in the table": sum(one.unknown for one in verdicts),
    }
