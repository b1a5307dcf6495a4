"""Draw the next token of one text from its scores, with the text's own generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CLOSE = 1e-4
"""Logits of a batch and of a text alone differ by less; nearer to a boundary than this, another batch may draw another token."""
# Among so many likeliest tokens the nucleus nearly always ends, and finding them is much cheaper than sorting the vocabulary.
_CANDIDATES = 256


@dataclass(frozen=True)
class Draw:
    """A token, and whether the decision was closer than CLOSE."""

    token: int
    close: bool


def draw(scores: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Draw:
    """Take one token.

    Tokens are laid side by side in the order of their ids, each as wide as its probability, and one random number says where to
    cut: unlike in an order by probability, two almost equal tokens cannot change places.

    Args:
        scores: (V,) in fp32; -inf is never drawn.
        temperature: Divides the scores; 0 takes the highest.
        top_p: Draw from the fewest likeliest tokens that together have this probability (nucleus sampling, Holtzman et al. 2020).
        generator: Gives exactly one number, except at temperature 0.
    """
    if temperature == 0:
        best = scores.topk(min(2, len(scores)))
        return Draw(int(best.indices[0]), len(scores) > 1 and float(best.values[0] - best.values[1]) < CLOSE)
    probabilities = (scores.double() / temperature).softmax(0)
    kept, margin = (None, 1.0) if top_p >= 1 else _nucleus(probabilities, top_p)
    widths = probabilities if kept is None else probabilities[kept]
    ends = widths.cumsum(0)
    point = torch.rand((), generator=generator, dtype=torch.float64) * ends[-1]
    # The first end beyond the point; rounding may put the point on the last end.
    index = int(torch.searchsorted(ends, point, right=True).clamp_(max=len(ends) - 1))
    while widths[index] == 0:
        index -= 1
    margin = min(margin, float(ends[index] - point), float(point - (ends[index] - widths[index])) if index else 1.0)
    return Draw(index if kept is None else int(kept[index]), margin < CLOSE)


def _nucleus(probabilities: Tensor, top_p: float) -> tuple[Tensor, float]:
    """Ids of the nucleus in ascending order, and how near its total comes to `top_p` on either side."""
    values, ids = probabilities.topk(min(_CANDIDATES, len(probabilities)))
    if values.sum() < top_p:
        values, ids = probabilities.sort(descending=True)
    totals = values.cumsum(0)
    size = min(int((totals < top_p).sum()) + 1, len(totals))
    margin = abs(float(totals[size - 1]) - top_p)
    if size > 1:
        margin = min(margin, abs(top_p - float(totals[size - 2])))
    return ids[:size].sort().values, margin
