"""The node lists that Slurm writes: "node[001-003,007]". For Python 3.6 too: `hostfiles/from_scheduler` runs on the nodes' own."""

import itertools
import re

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def expand_nodelist(text: str) -> "list[str]":
    """'a[1-2]b[0,3],c' -> ['a1b0', 'a1b3', 'a2b0', 'a2b3', 'c']: every combination, in Slurm's order.

    Raises:
        ValueError: If it cannot be understood.
    """
    hosts = []
    for entry in _split_outside_brackets(text.strip()):
        pieces = re.split(r"\[([^\]]*)\]", entry)  # literal, ranges, literal, ranges, ... literal
        choices = [
            [piece] if index % 2 == 0 else [number for part in piece.split(",") for number in _expand_range(part)]
            for index, piece in enumerate(pieces)
        ]
        hosts += ["".join(combination) for combination in itertools.product(*choices)]
    return hosts


def _split_outside_brackets(text: str) -> "list[str]":
    """Split at commas, but not at those inside [...]."""
    parts, depth = [""], 0
    for char in text:
        depth += {"[": 1, "]": -1}.get(char, 0)
        if depth not in (0, 1):
            break
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    if depth:
        raise ValueError(f'"{text}" has brackets that do not match')
    return parts


def _expand_range(text: str) -> "list[str]":
    """'001-003' -> ['001', '002', '003']; the first number's width is kept, as Slurm does."""
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ValueError(f'"{text}" is not a number or a range such as 001-032')
    first, last = match.group(1), match.group(2) or match.group(1)
    if int(last) < int(first):
        raise ValueError(f'the range "{text}" ends before it starts')
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
