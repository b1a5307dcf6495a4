"""The node lists that Slurm writes: "node[001-003,007]". For Python 3.6 too: `hostfiles/from_scheduler` runs on the nodes' own."""

import itertools
import re


def expand_nodelist(text: str) -> "list[str]":
    """'a[1-2]b[0,3],c' -> ['a1b0', 'a1b3', 'a2b0', 'a2b3', 'c']: every combination, in Slurm's order.

    Raises:
        ValueError: If it cannot be understood.
    """
    if not re.fullmatch(r"(?:[^\[\]]|\[[^\[\]]*\])*", text):
        raise ValueError(f'"{text}" has brackets that do not match')
    hosts = []
    for entry in re.split(r",(?![^\[]*\])", text.strip()):  # Not at commas inside brackets.
        pieces = re.split(r"\[([^\]]*)\]", entry)  # literal, ranges, literal, ranges, ... literal
        choices = [
            [piece] if index % 2 == 0 else [number for part in piece.split(",") for number in _expand_range(part)]
            for index, piece in enumerate(pieces)
        ]
        hosts += ["".join(combination) for combination in itertools.product(*choices)]
    return hosts


def _expand_range(text: str) -> "list[str]":
    """'001-003' -> ['001', '002', '003']; the first number's width is kept, as Slurm does."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if match is None:
        raise ValueError(f'"{text}" is not a number or a range such as 001-032')
    first, last = match.group(1), match.group(2) or match.group(1)
    if int(last) < int(first):
        raise ValueError(f'the range "{text}" ends before it starts')
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
