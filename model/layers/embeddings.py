"""The first layers: token ids to vectors, and learned positions.

Each module takes one tensor and returns one, so that any of them can be the edge of a pipeline stage.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import ModelConfig
from model.layers.dropout import dropout


class TokenEmbedding(nn.Module):
    """Token ids to vectors.

    Holds nothing but the matrix: when it is tied to the head, DeepSpeed keeps only `weight` equal on the first and the last stage.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)."""
        return functional.embedding(tokens, self.weight)


class PositionEmbedding(nn.Module):
    """Adds learned positions, then dropout.

    With rotary positions only the dropout is left; the layer stays, so that blocks have the same indices in every family.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.offset, self.max_seq_length, self.dropout = config.position_offset, config.max_seq_length, config.dropout
        learned = config.position == "learned"
        self.weight = nn.Parameter(torch.empty(config.num_positions, config.hidden_size)) if learned else None

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D).

        Raises:
            ValueError: If T is beyond the position table.
        """
        T = hidden.shape[1]
        if self.max_seq_length < T:
            raise ValueError(f"{T} tokens do not fit in max_seq_length = {self.max_seq_length} positions. Use shorter rows.")
        if self.weight is not None:
            hidden = hidden + self.weight[self.offset : self.offset + T]
        return dropout(hidden, self.dropout, self.training)
