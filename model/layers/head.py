"""The last layers: the final norm, and the head, which makes logits of hidden states.

Each module takes one tensor and returns one, so that any of them can be the edge of a pipeline stage.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import ModelConfig
from model.layers.norms import build_norm


class FinalNorm(nn.Module):
    """The norm between the last block and the head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = build_norm(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.norm(hidden)


class Head(nn.Module):
    """Hidden states to logits, with a matrix of its own. A tied head is `project` on the embedding instead."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V)."""
        return project(self.weight, hidden)


def project(vocabulary: Tensor, hidden: Tensor) -> Tensor:
    """Logits (B, T, V) of hidden states (B, T, D) under a vocabulary matrix (V, D)."""
    return functional.linear(hidden, vocabulary)
