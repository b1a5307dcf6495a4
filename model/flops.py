"""Parameters, floating-point operations and bytes of a model, from its configuration alone (no torch).

Layers are those of `gpt.layers`, in its order. A multiply and an add are two operations; the backward pass does twice the forward's work.
"""

from __future__ import annotations

from .config import ModelConfig

# What one logit or one attention weight costs in softmax and cross-entropy, in matrix-product operations of the same duration.
SOFTMAX_WORK = 8


def layer_parameters(config: ModelConfig) -> list[int]:
    """Parameters each layer holds. A tied head holds the embedding's matrix too, as a pipeline's last stage does."""
    D, M = config.hidden_size, config.intermediate_size
    norm = D * (2 if config.norm == "layernorm" and config.use_bias else 1)
    bias = int(config.use_bias)
    attention = norm + (D + bias) * (D + 2 * config.kv_size) + (D + bias) * D
    mlp = norm + (D + bias) * M * (2 if config.gated else 1) + (M + bias) * D
    vocabulary = config.vocab_size * D
    return [vocabulary, config.num_positions * D, *[attention, mlp] * config.num_layers, norm, vocabulary]


def count_parameters(config: ModelConfig) -> int:
    """Parameters of the whole model; a tied matrix counts once."""
    total = sum(layer_parameters(config))
    return total - config.vocab_size * config.hidden_size if config.tie_embeddings else total


def layer_flops(config: ModelConfig, seq_length: int) -> list[float]:
    """Matrix-product operations per token of each layer, forward and backward.

    Attention scores are counted over the whole T x T square, as is usual for model FLOP utilisation.
    """
    D, M = config.hidden_size, config.intermediate_size
    projections = 2 * D * (2 * D + 2 * config.kv_size)
    attention = projections + 4 * seq_length * D
    mlp = 2 * D * M * (3 if config.gated else 2)
    head = 2 * D * config.vocab_size
    return [3.0 * flops for flops in (0, 0, *[attention, mlp] * config.num_layers, 0, head)]


def flops_per_token(config: ModelConfig, seq_length: int) -> float:
    """Matrix-product operations of training on one token, forward and backward, attention included."""
    return sum(layer_flops(config, seq_length))


def layer_work(config: ModelConfig, seq_length: int) -> list[float]:
    """What balances pipeline stages: `layer_flops`, plus the softmax over attention scores and the cross-entropy over logits."""
    work = layer_flops(config, seq_length)
    for index in range(2, 2 + 2 * config.num_layers, 2):
        work[index] += 3.0 * SOFTMAX_WORK * config.num_heads * seq_length
    work[-1] += 3.0 * SOFTMAX_WORK * config.vocab_size
    return work
