"""Where weights come from: drawn layer by layer, or copied from a folder."""

from __future__ import annotations

import math

import torch
from torch import nn

from .config import ModelConfig

# What these produce is added to the residual stream once per half-block; GPT-2 shrinks them so that the sum keeps its size.
RESIDUAL_OUTPUTS = ("out.weight", "down.weight")


def draw_weights(module: nn.Module, config: ModelConfig, seed: int, index: int) -> None:
    """Set a layer's weights from (seed, its index in the list) alone, in fp32; no global generator is touched.

    Matrices are normal with `init_std`, those that end a half-block with `init_std` / sqrt(2 * num_layers); norms start at 1, biases at 0.
    """
    generator = torch.Generator().manual_seed(seed * 65537 + index)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.ndim > 1:
                shrink = math.sqrt(2 * config.num_layers) if name in RESIDUAL_OUTPUTS else 1.0
                weight.normal_(0.0, config.init_std / shrink, generator=generator)
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
