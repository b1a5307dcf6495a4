"""How varied texts are: distinct n-grams over all of them, repeated ones inside each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

SIZES = (1, 2, 4)


def figures(texts: Sequence[str]) -> dict[str, float | None]:
    """Shares of n-grams of characters, white space left out; None where no text is that long.

    `distinct_n`: different n-grams over all texts, by their number (Li et al. 2016, "A diversity-promoting objective function").
    `repeated_n`: of a text's n-grams, those that it has already had, on average (Welleck et al. 2020, "seq-rep-n").
    """
    plain = ["".join(text.split()) for text in texts]
    found: dict[str, float | None] = {}
    for size in SIZES:
        grams = [list(_ngrams(text, size)) for text in plain]
        every = [gram for one in grams for gram in one]
        found[f"distinct_{size}"] = len(set(every)) / len(every) if every else None
        repeated = [1 - len(set(one)) / len(one) for one in grams if one]
        found[f"repeated_{size}"] = sum(repeated) / len(repeated) if repeated else None
    return found


def _ngrams(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(len(text) - size + 1))
