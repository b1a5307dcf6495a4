"""Causal self-attention of one block: projections, rotary positions, and the two ways to weigh values.

A half-block takes the residual stream and returns it: `hidden + attention(norm(hidden))`.
"""

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import LONGEST_MATRIX_ROW, ModelConfig
from model.layers.dropout import dropout
from model.layers.norms import build_norm


class Attention(nn.Module):
    """The attention half of a block, with its norm and its residual connection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_size = config.num_heads, config.num_kv_heads, config.head_size
        self.rotary = Rotary(config) if config.position == "rotary" else None
        self.attention_dropout = config.attention_dropout
        self.dropout = config.dropout
        self.norm = build_norm(config)
        # Rows: every query head, then every key head, then every value head.
        self.qkv = nn.Linear(config.hidden_size, config.hidden_size + 2 * config.kv_size, bias=config.use_bias)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=config.use_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        B, T, _ = hidden.shape
        heads = self.qkv(self.norm(hidden)).view(B, T, -1, self.head_size).permute(2, 0, 1, 3)  # (H + 2K, B, T, E)
        q, k, v = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads])
        if self.rotary is not None:
            q, k = self.rotary(heads[: self.num_heads + self.num_kv_heads]).split([self.num_heads, self.num_kv_heads])
        context = attend(q, k, v, self.attention_dropout if self.training else 0.0)
        return hidden + dropout(self.out(context), self.dropout, self.training)


def attend(q: Tensor, k: Tensor, v: Tensor, dropout_ratio: float) -> Tensor:
    """Causal attention: queries (H, B, T, E) over keys and values (K, B, T, E) -> (B, T, D).

    The path depends on device and length only, never on a timing, so that a resumed run repeats its arithmetic bit for bit.
    """
    if q.device.type == "cpu" and q.shape[2] <= LONGEST_MATRIX_ROW:
        return _attend_with_matrices(q, k, v, dropout_ratio)
    grouped = len(q) != len(k)
    context = functional.scaled_dot_product_attention(
        q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), dropout_p=dropout_ratio, is_causal=True, enable_gqa=grouped
    )
    return context.transpose(1, 2).flatten(2)


def _attend_with_matrices(q: Tensor, k: Tensor, v: Tensor, dropout_ratio: float) -> Tensor:
    """Scores as one matrix per head and row of the batch; on CPU faster than the fused kernel while the matrices are small."""
    H, B, T, E = q.shape
    K, G = len(k), H // len(k)
    # The G heads that share a key head are G * T rows of one product, so keys and values are never repeated.
    q = q.reshape(K, G, B, T, E).transpose(1, 2).reshape(K * B, G * T, E)
    k, v = k.reshape(K * B, T, E), v.reshape(K * B, T, E)
    scores = torch.baddbmm(causal_mask(T, G, q.dtype, q.device), q, k.transpose(1, 2), alpha=1 / math.sqrt(E))  # (K * B, G * T, T)
    weights = dropout(scores.softmax(-1), dropout_ratio, training=True)
    context = torch.bmm(weights, v).view(K, B, G, T, E)
    return context.permute(1, 3, 0, 2, 4).reshape(B, T, H * E)


@functools.lru_cache(maxsize=8)
def causal_mask(length: int, repeats: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(repeats * T, T): 0 where a token may look, -inf where it may not."""
    # A tensor made in inference mode could not be used in training later.
    with torch.inference_mode(False):
        mask = torch.full((length, length), -math.inf, dtype=dtype, device=device).triu(1)
        return mask.repeat(repeats, 1)


class Rotary(nn.Module):
    """Rotary positions: turns pairs of features by an angle that grows with the position.

    Holds no tensors: cosines and sines are computed in fp32 and applied in fp32, whatever precision the model is cast to.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_size, self.base = config.head_size, config.rotary_base
        self.turn = {"half": _turn_halves, "interleaved": _turn_neighbours}[config.rotary_style]

    def forward(self, heads: Tensor) -> Tensor:
        """(..., T, E) -> (..., T, E)."""
        cos, sin = rotary_tables(heads.shape[-2], self.head_size, self.base, heads.device)
        return self.turn(heads.float(), cos, sin).to(heads.dtype)


@functools.lru_cache(maxsize=8)
def rotary_tables(length: int, head_size: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each fp32 (T, E / 2)."""
    with torch.inference_mode(False):
        frequencies = 1.0 / base ** (torch.arange(0, head_size, 2, dtype=torch.float32, device=device) / head_size)
        angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)
        return angles.cos(), angles.sin()


def _turn_halves(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _turn_neighbours(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs = heads.unflatten(-1, (-1, 2))
    if heads.device.type == "cpu":  # a third of the time; complex numbers are not at home on every accelerator
        return torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin)).flatten(-2)
    first, second = pairs.unbind(-1)
    return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)
