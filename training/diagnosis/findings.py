"""The result of one check: what was found, and what to do about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    check: str
    state: Literal["good", "note", "bad"]
    """`bad` stops a run or spoils it; `note` is worth knowing."""
    said: str
    fix: str = ""


def good(check: str, said: str) -> Finding:
    """Nothing to do."""
    return Finding(check, "good", said)


def note(check: str, said: str, fix: str = "") -> Finding:
    """Worth knowing."""
    return Finding(check, "note", said, fix)


def bad(check: str, said: str, fix: str) -> Finding:
    """To be mended first."""
    return Finding(check, "bad", said, fix)


def table(findings: Sequence[Finding]) -> str:
    """One line a finding, the way out below it."""
    width = max(len(one.check) for one in findings)
    lines = []
    for one in findings:
        lines.append(f"{one.state:<4}  {one.check:<{width}}  {one.said}")
        if one.fix:
            lines.append(f"{'':<4}  {'':<{width}}  -> {one.fix}")
    return "\n".join(lines)
