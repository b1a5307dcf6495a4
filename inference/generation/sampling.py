"""Sampling: from the scores of the next token to the token; what is penalised, ruled out, and drawn, row by row."""

import torch
from torch import Tensor

from inference.generation.settings import SamplingParams, seed_of

CLOSE = 1e-4
"""Logits of a text alone and among others differ by less (in fp32). A decision that is closer than this may be another one there."""


class SamplingLogitsProcessor:
    """For the `generate` of transformers: draws one token for each row with a generator of its own, whatever its neighbours are.

    The scores that come out leave only the drawn token, which the library's greedy search then takes.
    """

    def __init__(self, sampling: SamplingParams, unusable: Tensor, mask: Tensor) -> None:
        """`mask` (B, T) is true where a prompt is, and not padding; `unusable` are ids that are never written."""
        self._sampling, self._unusable, self._mask = sampling, unusable, mask
        self._generators = [torch.Generator(mask.device).manual_seed(seed_of(row, sampling.seed)) for row in range(len(mask))]

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """The scores (B, V) after the tokens (B, T), padding included, with one token left in each row; all of them if greedy."""
        if self._sampling.repetition_penalty != 1:
            scores = self._penalised(tokens, scores)
        scores = scores.index_fill(1, self._unusable, -torch.inf)
        if self._sampling.temperature == 0:
            return scores
        probabilities = torch.softmax(warp(scores.float(), self._sampling), dim=-1)  # (B, V)
        drawn = [sample_token(row, own)[0] for row, own in zip(probabilities, self._generators, strict=True)]
        return torch.full_like(scores, -torch.inf).scatter(1, torch.tensor(drawn, device=scores.device)[:, None], 0.0)

    def _penalised(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """Divides the positive and multiplies the negative scores of tokens that are there already (Keskar et al. 2019, CTRL).

        The library's own version counts the padding on the left as text, so that a prompt's neighbours in the batch would change its text.
        """
        new = torch.ones_like(tokens[:, self._mask.shape[1] :], dtype=torch.bool)
        rows, columns = torch.cat([self._mask, new], dim=1).nonzero(as_tuple=True)
        present = torch.zeros_like(scores, dtype=torch.bool)
        present[rows, tokens[rows, columns]] = True
        penalty = self._sampling.repetition_penalty
        return torch.where(present, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def sample_token(probabilities: Tensor, generator: torch.Generator) -> tuple[int, bool]:
    """One token from probabilities (V,), and whether the decision was closer than CLOSE.

    Every token waits for a random time, the shorter the likelier it is, and the first one is taken. These are the numbers and the
    token of `torch.multinomial`, which does not tell how close the second one came. Nearly equal probabilities give nearly equal times.
    """
    waits = torch.empty_like(probabilities).exponential_(1, generator=generator)
    first = (probabilities / waits).topk(min(2, len(probabilities)))
    return int(first.indices[0]), len(first.values) > 1 and float(first.values[1] / first.values[0]) > 1 - CLOSE


def warp(scores: Tensor, sampling: SamplingParams) -> Tensor:
    """Scores (B, V) with temperature, top-k and top-p in effect: what is not to be drawn is -inf."""
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    scores = scores / sampling.temperature
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return scores
