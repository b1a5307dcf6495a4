"""The result of one check: what was found, and what to do about it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    check: str
    said: str
    fix: str = ""
    state: Literal["good", "note", "bad"] = field(kw_only=True)
    """`good` needs nothing done, `bad` stops a run or spoils it; `note` is worth knowing."""


good, note, bad = (partial(Finding, state=state) for state in ("good", "note", "bad"))


def table(findings: Sequence[Finding]) -> str:
    """One line a finding, the way out below it."""
    width = max(len(one.check) for one in findings)
    lines = []
    for one in findings:
        lines.append(f"{one.state:<4}  {one.check:<{width}}  {one.said}")
        if one.fix:
            lines.append(f"{'':<4}  {'':<{width}}  -> {one.fix}")
    return "\n".join(lines)
