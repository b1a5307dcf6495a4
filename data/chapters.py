"""Split a novel at its chapter headings (回目: 第一回 甄士隐梦幻识通灵 ...).

A line is taken for a heading only if its number is the one expected next. So a sentence that begins with 第四回中 inside
chapter 5 and a table of contents before the text are not mistaken for headings.
"""

import re

# Longer lines that begin like a heading are prose about a chapter.
_MAX_HEADING_CHARS = 45
_HEADING = re.compile(
    r"^[ \t\u3000#]*第[ \t\u3000]*([0-9０-９〇零○一二三四五六七八九十百千两廿卅]+)[ \t\u3000]*[回章卷](?P<title>.*)$", re.MULTILINE
)
_DIGITS = (
    {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "○": 0, "两": 2} | {c: i for i, c in enumerate("０１２３４５６７８９")}
)
_UNITS = {"十": 10, "百": 100, "千": 1000}


def read_numeral(text: str) -> int | None:
    """Return the number of a Chinese or Arabic numeral in either style: 一百一十八, 一一八, 廿三, 118; None if it is none."""
    if text.isascii() and text.isdigit():
        return int(text)
    text = text.replace("廿", "二十").replace("卅", "三十")
    if all(c in _DIGITS for c in text):
        return int("".join(str(_DIGITS[c]) for c in text))
    total, digit = 0, 0
    for c in text:
        if c in _DIGITS:
            digit = _DIGITS[c]
        elif c in _UNITS:
            total += (digit or 1) * _UNITS[c]
            digit = 0
        else:
            return None
    return total + digit


def split_chapters(text: str) -> list[str]:
    """Return the chapters of `text`, each from its heading to the next one, in order from chapter 1.

    What stands before the first heading, a table of contents for instance, is left out. Empty without any heading.
    """
    headings: list[tuple[int, int]] = []  # (number, position)
    for match in _HEADING.finditer(text):
        if len(match.group(0).strip()) > _MAX_HEADING_CHARS:
            continue
        number = read_numeral(match.group(1))
        if number is not None:
            headings.append((number, match.start()))
    starts = _longest_run(headings, len(text))
    return [text[start:end].strip() for start, end in zip(starts, [*starts[1:], len(text)], strict=False)]


def _longest_run(headings: list[tuple[int, int]], end: int) -> list[int]:
    """Positions of headings 1, 2, 3 ... of the run that covers most of the text, a table of contents being a short one."""
    best: list[int] = []
    best_extent = -1
    for first, (number, _) in enumerate(headings):
        if number != 1:
            continue
        run, expected = [], 1
        for candidate, position in headings[first:]:
            if candidate == expected:
                run.append(position)
                expected += 1
        # Runs that begin later but reach as far have skipped a table of contents: `>=` prefers them.
        if len(run) > len(best) or (len(run) == len(best) and _extent(run, end) >= best_extent):
            best, best_extent = run, _extent(run, end)
    return best


def _extent(run: list[int], end: int) -> int:
    """Characters in the shortest chapter of a run: next to nothing where headings follow each other in a list."""
    return min(b - a for a, b in zip(run, [*run[1:], end], strict=False))
