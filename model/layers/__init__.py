"""The layers, and the list of them that is the model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from model.config import ModelConfig
from model.layers.attention import Attention
from model.layers.embeddings import PositionEmbedding, TokenEmbedding
from model.layers.head import FinalNorm, Head
from model.layers.mlp import MLP, GatedMLP

if TYPE_CHECKING:
    from model.initialize import Weights

CLASSES: dict[str, type[nn.Module]] = {
    module.__name__: module for module in (TokenEmbedding, PositionEmbedding, Attention, MLP, GatedMLP, FinalNorm, Head)
}


@dataclass(frozen=True)
class Layer:
    """One entry of the list: a module class, and whether it shares the embedding's matrix."""

    index: int
    module: type[nn.Module]
    tied: bool = False

    @property
    def block(self) -> int:
        """Number of the block an attention or MLP half belongs to."""
        return (self.index - 2) // 2

    def on_meta(self, config: ModelConfig) -> nn.Module:
        """The layer without values, on the meta device."""
        with torch.device("meta"):
            return self.module(config)

    def build(self, config: ModelConfig, weights: "Weights | None") -> nn.Module:
        """The layer on the CPU in fp32 with its first weights; without any they are unset and must be loaded."""
        # Constructors draw weights of their own; on the meta device that costs nothing and leaves the global generators alone.
        module = self.on_meta(config).to_empty(device="cpu")
        if weights is not None:
            weights.fill(module, self.index)
        return module


def layers(config: ModelConfig) -> list[Layer]:
    """The model from front to back: embeddings, each block as an attention and an MLP half, final norm, head.

    Block i is entries 2 + 2i and 3 + 2i in every family. A tied head is the embedding's entry again.
    """
    return [
        Layer(index, CLASSES[name], tied=config.tie_embeddings and name == "TokenEmbedding")
        for index, name in enumerate(config.layer_classes)
    ]
