"""The list of layers, and the plain model that runs them one after the other in one process.

The pipeline over the same list is `pipeline.py`. Where the weights come from is `initialize.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attention import Attention
from .config import ModelConfig
from .cross_entropy import loss
from .initialize import draw_weights
from .layers import MLP, FinalNorm, GatedMLP, Head, PositionEmbedding, TokenEmbedding, project

__all__ = ["GPT", "Layer", "layers", "loss"]


@dataclass(frozen=True)
class Layer:
    """One entry of the list: a module class, and whether it shares the embedding's matrix."""

    index: int
    module: type[nn.Module]
    tied: bool = False

    def build(self, config: ModelConfig, seed: int | None) -> nn.Module:
        """The layer on the CPU in fp32, its weights drawn from (seed, index); without a seed they are unset and must be loaded."""
        # Constructors draw weights of their own; on the meta device that costs nothing and leaves the global generators alone.
        with torch.device("meta"):
            module = self.module(config)
        module.to_empty(device="cpu")
        if seed is not None:
            draw_weights(module, config, seed, self.index)
        return module


def layers(config: ModelConfig) -> list[Layer]:
    """The model from front to back: embeddings, each block as an attention and an MLP half, final norm, head.

    Block i is entries 2 + 2i and 3 + 2i in every family. A tied head is the embedding's entry again.
    """
    mlp = GatedMLP if config.gated else MLP
    tied = config.tie_embeddings
    modules: list[type[nn.Module]] = [PositionEmbedding, *[Attention, mlp] * config.num_layers, FinalNorm]
    middle = [Layer(index, module) for index, module in enumerate(modules, start=1)]
    head = Layer(len(middle) + 1, TokenEmbedding if tied else Head, tied)
    return [Layer(0, TokenEmbedding, tied), *middle, head]


class GPT(nn.Module):
    """The plain model. Parameters are named "<index in the list>.<name>"; a tied matrix is there once, as "0.weight"."""

    def __init__(self, config: ModelConfig, seed: int | None = None) -> None:
        """Build every layer on the CPU in fp32; without a seed the weights are unset and must be loaded."""
        super().__init__()
        self.config = config
        entries = layers(config)
        for entry in entries[:-1] if config.tie_embeddings else entries:
            self.add_module(str(entry.index), entry.build(config, seed))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) token ids -> (B, T, V) logits."""
        hidden = tokens
        for module in self.children():
            hidden = module(hidden)
        return project(self.get_parameter("0.weight"), hidden) if self.config.tie_embeddings else hidden
