"""The form of a classical poem, told from its text: 五言绝句, 七言律诗 ..."""

import re
from collections.abc import Sequence

_CLAUSE_END = re.compile(r"[，。？！；、：\s]+")
_LINES = {5: "五言", 7: "七言"}
_WHOLES = {4: "绝句", 8: "律诗"}


def clauses(text: str) -> list[str]:
    """The lines of a poem, without punctuation."""
    return [clause for clause in _CLAUSE_END.split(text) if clause]


def form(lines: Sequence[str]) -> str:
    """The form of such lines: five or seven characters each, as quatrain (绝句), regulated verse (律诗) or longer (古诗); else 杂言."""
    lengths = {len(line) for line in lines}
    if len(lengths) != 1 or (length := lengths.pop()) not in _LINES:
        return "杂言"
    return _LINES[length] + _WHOLES.get(len(lines), "古诗")
