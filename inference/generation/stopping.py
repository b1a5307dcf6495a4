"""Where a text is to stop before its limit: at a string, or where the next line, paragraph or chapter begins. Torch is not needed here."""

import re
from collections.abc import Sequence

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


class Stops:
    """What ends a text; it is not part of the text itself."""

    def __init__(self, strings: Sequence[str] = (), boundaries: Sequence[str] = ()) -> None:
        """Texts, and names of BOUNDARIES.

        Raises:
            ValueError: If a text is empty, or there is no such boundary.
        """
        if "" in strings:
            raise ValueError("a text to stop at is empty; give at least one character.")
        if unknown := set(boundaries) - BOUNDARIES.keys():
            raise ValueError(f"stop at = {', '.join(sorted(unknown))}; it must be one of {', '.join(BOUNDARIES)}.")
        pairs = [BOUNDARIES[name] for name in boundaries]
        whole = [re.escape(string) for string in strings] + [pattern for pattern, _ in pairs]
        begun = [rf"{re.escape(string[:end])}\Z" for string in strings for end in range(1, len(string))] + [pattern for _, pattern in pairs]
        # (?!) matches nowhere.
        self.whole = re.compile("|".join(whole) or r"(?!)")
        self.begun = re.compile("|".join(begun) or r"(?!)")
        """Matches where a stop may begin that has not come to its end."""

    def certain(self, text: str, shown: int, *, is_last: bool) -> tuple[int, bool]:
        """How many characters of a text can be shown by now, of which `shown` are shown already, and whether a stop follows them.

        What may become a stop is kept back, unless nothing follows (`is_last`).
        """
        begun = None if is_last else self.begun.search(text, shown)
        certain = begun.start() if begun else len(text)
        match = self.whole.search(text, shown)
        # One that may have begun before this one comes first, so that the pieces in which a text comes do not matter.
        if match and match.start() <= certain:
            return match.start(), True
        return certain, False
