"""The form of a classical poem, told from its text: 五言绝句, 七言律诗 ..."""

import re

_CLAUSE_END = re.compile(r"[，。？！；、：\s]+")
_LINES = {5: "五言", 7: "七言"}
_WHOLES = {4: "绝句", 8: "律诗"}


def form(text: str) -> str:
    """Return the form: five or seven characters a clause, as quatrain (绝句), regulated verse (律诗) or longer (古诗); else 杂言."""
    clauses = [clause for clause in _CLAUSE_END.split(text) if clause]
    lengths = {len(clause) for clause in clauses}
    if len(lengths) != 1 or (length := lengths.pop()) not in _LINES:
        return "杂言"
    return _LINES[length] + _WHOLES.get(len(clauses), "古诗")
