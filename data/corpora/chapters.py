"""Split a novel at its chapter headings (回目: 第一回 甄士隐梦幻识通灵 ...).

A line is taken for a heading only if its number is the one expected next, or 1 where the numbering of a new volume begins. So a
sentence that begins with 第四回中 inside chapter 5 and a table of contents before the text are not mistaken for headings.
What does not add up, a number that is missing between two others or a numbering that begins again behind its first number, is said
and left to the caller: `Chapters.missing`.
"""

import math
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

# Longer lines that begin like a heading are prose about a chapter.
_MAX_HEADING_CHARS = 45
_HEADING = re.compile(
    r"^[ \t\u3000#]*第[ \t\u3000]*(?P<number>[0-9０-９〇零○一二三四五六七八九十百千两廿卅]+)[ \t\u3000]*(?P<unit>[回章卷])(?P<title>.*)$",
    re.MULTILINE,
)
# A table of contents has next to nothing between its headings: so many characters at most, and less than a tenth of a chapter.
_CONTENTS_CHARS = 100
_CONTENTS_SHARE = 0.1


@dataclass(frozen=True)
class Chapter:
    """One chapter: its text from the heading to the next one, without white space at the ends."""

    number: int
    """As its heading says."""
    line: int
    """Of its heading, from 1."""
    text: str


@dataclass(frozen=True)
class Chapters:
    """What was found in a text."""

    volumes: tuple[tuple[Chapter, ...], ...]
    """In each the numbers rise from 1, or from the first there is where no heading says 1."""
    before: str
    """What stands before the first heading: a title page, a preface, a table of contents."""
    missing: tuple[str, ...]
    """Each place where numbers are missing, as a phrase."""
    passed_over: tuple[int, ...] = ()
    """Lines that look like headings but are not the next in order, such as a number that is there twice: text of a chapter."""

    @property
    def all(self) -> list[Chapter]:
        """The chapters of all volumes, in order."""
        return [chapter for volume in self.volumes for chapter in volume]


@dataclass(frozen=True)
class _Heading:
    number: int
    line: int
    start: int
    end: int
    is_set_off: bool
    """Whether white space, a mark or nothing follows 第一回, as in a heading; 第四回中 may be prose."""


def read_numeral(text: str) -> int:
    """Return the number of a Chinese or Arabic numeral in either style: 一百一十八, 一一八, 廿三, 118."""
    for other, usual in (("○", "零"), ("两", "二"), ("廿", "二十"), ("卅", "三十")):
        text = text.replace(other, usual)
    values = [int(unicodedata.numeric(c)) for c in text]
    if max(values) < 10:
        return int("".join(map(str, values)))
    total, digit = 0, 0
    for value in values:
        if value < 10:
            digit = value
        else:
            total, digit = total + (digit or 1) * value, 0
    return total + digit


def split_chapters(text: str, absent: Collection[int] = ()) -> Chapters:
    """Find the chapters of `text`. Of the text nothing is lost: `before` and the chapters hold all but white space between them.

    Args:
        text: A whole text.
        absent: Numbers that this text does not have; the chapter before goes on to the next heading there is.
    """
    headings = _headings(text)
    runs, missing = _runs(headings, frozenset(absent))
    if not runs:
        return Chapters((), text, ())
    runs = _without_contents(runs, text)
    starts = [heading.start for run in runs for heading in run]
    taken = set(starts)
    ends = iter([*starts[1:], len(text)])
    volumes = tuple(tuple(Chapter(one.number, one.line, text[one.start : next(ends)].strip()) for one in run) for run in runs)
    return Chapters(
        volumes,
        text[: starts[0]],
        tuple(phrase for start, phrase in missing if start >= starts[0]),
        tuple(one.line for one in headings if one.is_set_off and one.start > starts[0] and one.start not in taken),
    )


def _headings(text: str) -> list[_Heading]:
    """All lines that may be headings. Beside 回 or 章, 卷 are volumes and no chapters."""
    matches = [match for match in _HEADING.finditer(text) if len(match[0].strip()) <= _MAX_HEADING_CHARS]
    by_volume = 2 * sum(match["unit"] == "卷" for match in matches) > len(matches)
    return [
        _Heading(read_numeral(match["number"]), text.count("\n", 0, match.start()) + 1, *match.span(), not match["title"][:1].isalnum())
        for match in matches
        if (match["unit"] == "卷") == by_volume
    ]


def _runs(headings: Sequence[_Heading], absent: frozenset[int]) -> tuple[list[list[_Heading]], list[tuple[int, str]]]:
    """Cut out of all candidates the runs of rising numbers, one for each volume, and what is missing in them: (position, phrase)."""
    runs: list[list[_Heading]] = []
    missing: list[tuple[int, str]] = []
    passed_over: list[_Heading] = []  # Since the last heading that was taken.
    numbers = [heading.number for heading in headings]
    expected = 1 if 1 in numbers else next((number for number in numbers if number + 1 in numbers), *numbers[:1] or [1])
    for index, heading in enumerate(headings):
        later = numbers[index + 1 :]
        # A volume can begin with 1, or with the first number that the text is not said to lack.
        may_be_first = 0 < heading.number < expected and absent.issuperset(range(1, heading.number))
        if runs and may_be_first and _begins_volume(heading, later, runs[-1], expected):
            runs.append([])
        elif heading.number > expected and runs and _is_after_gap(heading, later, runs[-1], expected):
            missing.append(_gap(expected, runs[-1][-1], heading))
        elif heading.number != expected:
            if runs and heading.is_set_off and (not passed_over or heading.number == passed_over[-1].number + 1):
                passed_over.append(heading)
                # One number that is there twice is a slip; two in a row are a volume whose beginning was not read.
                if len(passed_over) == 2 and heading.number < expected:
                    missing.append(_gap(1, runs[-1][-1], passed_over[0]))
            continue
        if not runs:
            runs.append([])
        runs[-1].append(heading)
        passed_over = []
        expected = heading.number + 1
        while expected in absent:
            expected += 1
    return runs, missing


def _gap(first: int, before: _Heading, after: _Heading) -> tuple[int, str]:
    """Where numbers from `first` on are missing before a heading, and the phrase that says so."""
    numbers = f"{first}" if after.number == first + 1 else f"{first} to {after.number - 1}"
    return after.start, f"{numbers} between lines {before.line} and {after.line}"


def _begins_volume(heading: _Heading, later: list[int], run: list[_Heading], expected: int) -> bool:
    """Whether a second 1 begins another volume: the number behind it comes before the one that would go on with this volume."""
    return (heading.is_set_off or not run[0].is_set_off) and _place(heading.number + 1, later) <= _place(expected, later)


def _is_after_gap(heading: _Heading, later: list[int], run: list[_Heading], expected: int) -> bool:
    """Whether a number beyond the expected one is a heading behind a gap, rather than prose that names a later chapter."""
    of_volume = later[: later.index(1)] if 1 in later else later
    following, goes_on = _place(heading.number + 1, of_volume), _place(expected, of_volume)
    return following < goes_on or (following == goes_on and heading.is_set_off and run[0].is_set_off)


def _place(number: int, numbers: list[int]) -> float:
    return numbers.index(number) if number in numbers else math.inf


def _without_contents(runs: list[list[_Heading]], text: str) -> list[list[_Heading]]:
    """Leave out the runs at the beginning that are a table of contents of what follows."""
    lengths = [_typical_chars(run, after, text) for run, after in zip(runs, [*runs[1:], None], strict=True)]
    longest = max(lengths)
    first = 0
    while first < len(runs) - 1 and lengths[first] <= min(_CONTENTS_CHARS, _CONTENTS_SHARE * longest):
        first += 1
    return runs[first:]


def _typical_chars(run: list[_Heading], after: list[_Heading] | None, text: str) -> float:
    """Characters between the headings of a run, in the middle one of its chapters."""
    between = [len(text[one.end : other.start].strip()) for one, other in pairwise(run)]
    return median(between or [len(text[run[0].end : after[0].start if after else len(text)].strip())])
