"""The list of layers, and the plain model that runs them one after the other in one process.

The pipeline over the same list is `pipeline.py`. Where the weights come from is `initialize.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.initialize import Weights
from model.layers.attention import Attention
from model.layers.cross_entropy import loss
from model.layers.embeddings import PositionEmbedding, TokenEmbedding
from model.layers.head import FinalNorm, Head, project
from model.layers.mlp import MLP, GatedMLP

__all__ = ["GPT", "Layer", "layers", "loss"]

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

    def build(self, config: ModelConfig, weights: Weights | None) -> nn.Module:
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


def first_weights(config: ModelConfig, seed: int) -> Weights:
    """Where a new model's weights come from. A folder is compared with every layer, so all processes refuse it with the same message.

    Raises:
        ValueError: Names the file, field or tensor that does not fit.
    """
    weights = Weights(config, seed)
    for entry in layers(config):
        weights.check(entry.on_meta(config), entry.index)
    return weights


class GPT(nn.Module):
    """The plain model. Parameters are named "<index in the list>.<name>"; a tied matrix is there once, as "0.weight"."""

    def __init__(self, config: ModelConfig, seed: int | None = None) -> None:
        """Build every layer on the CPU in fp32.

        Args:
            config: The model; its `initialize` says where weights come from.
            seed: Of the weights that are drawn. None leaves all weights unset, to be loaded.

        Raises:
            ValueError: If `initialize` names a folder that does not fit.
        """
        super().__init__()
        self.config = config
        entries = layers(config)
        weights = None if seed is None else first_weights(config, seed)
        for entry in entries[:-1] if config.tie_embeddings else entries:
            self.add_module(str(entry.index), entry.build(config, weights))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) token ids -> (B, T, V) logits."""
        hidden = tokens
        for module in self.children():
            hidden = module(hidden)
        return project(self.get_parameter("0.weight"), hidden) if self.config.tie_embeddings else hidden
