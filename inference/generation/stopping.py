"""Where a text is to stop before its limit: at a string, or where the next line, paragraph or chapter begins. Torch is not needed here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_NUMERALS = "0-9０-９〇零○一二三四五六七八九十百千两廿卅"
_HEADING = r"[ \t\u3000]*第[ \t\u3000]*"
# Each with what it begins with: text that may become a boundary is kept back until it has or has not.
BOUNDARIES = {
    "line": (r"\n", r"(?!)"),
    "blank-line": (r"\n[ \t\u3000\r]*\n", r"\n[ \t\u3000\r]*\Z"),
    "chapter": (
        rf"(?<=\n){_HEADING}[{_NUMERALS}]+[ \t\u3000]*[回章卷]",
        rf"(?<=\n)(?:[ \t\u3000]*|{_HEADING}[{_NUMERALS}]*[ \t\u3000]*)\Z",
    ),
}


@dataclass(frozen=True)
class Stops:
    """What ends a text; it is not part of the text itself."""

    strings: tuple[str, ...] = ()
    boundaries: tuple[str, ...] = ()
    """Of BOUNDARIES."""
    _whole: re.Pattern[str] = field(init=False, repr=False)
    _begun: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if "" in self.strings:
            raise ValueError("a text to stop at is empty; give at least one character.")
        if unknown := set(self.boundaries) - BOUNDARIES.keys():
            raise ValueError(f"stop at = {', '.join(sorted(unknown))}; it must be one of {', '.join(BOUNDARIES)}.")
        pairs = [BOUNDARIES[name] for name in self.boundaries]
        whole = [re.escape(string) for string in self.strings] + [pattern for pattern, _ in pairs]
        begun = [rf"(?:{_beginnings(string)})\Z" for string in self.strings if len(string) > 1] + [pattern for _, pattern in pairs]
        # (?!) matches nowhere.
        object.__setattr__(self, "_whole", re.compile("|".join(whole) or r"(?!)"))
        object.__setattr__(self, "_begun", re.compile("|".join(begun) or r"(?!)"))

    def find(self, text: str, start: int) -> re.Match[str] | None:
        """The first stop at or after `start`; what is before it counts as context."""
        return self._whole.search(text, start)

    def certain(self, text: str, start: int) -> int:
        """Up to where no stop can begin any more, whatever follows."""
        begun = self._begun.search(text, start)
        return begun.start() if begun else len(text)


class StopFinder:
    """Watches one text grow. Text is let through once it is certain that no stop begins in it."""

    def __init__(self, stops: Stops, before: str) -> None:
        self._stops, self._text, self._told = stops, before, len(before)
        self.found: str | None = None
        """The stop as it was written, once there is one."""

    def add(self, piece: str) -> str:
        """More text; returned is what can be shown by now."""
        self._text += piece
        return self._look(self._stops.certain(self._text, self._told))

    def rest(self) -> str:
        """What was kept back, when nothing will follow."""
        return "" if self.found is not None else self._look(len(self._text))

    def _look(self, certain: int) -> str:
        match = self._stops.find(self._text, self._told)
        # One that may have begun before this one comes first, so that the pieces in which a text comes do not matter.
        if match is None or match.start() > certain:
            return self._until(certain)
        self.found = match[0]
        return self._until(match.start())

    def _until(self, position: int) -> str:
        shown = self._text[self._told : position]
        self._told = position
        return shown


def _beginnings(string: str) -> str:
    """Matches every beginning of a string, the longest first."""
    return "|".join(re.escape(string[:length]) for length in range(len(string) - 1, 0, -1))
