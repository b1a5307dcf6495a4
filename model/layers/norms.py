"""The normalisation in front of each half-block and of the head."""

from torch import nn

from model.config import ModelConfig


def build_norm(config: ModelConfig) -> nn.Module:
    """A norm over the hidden dimension."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
