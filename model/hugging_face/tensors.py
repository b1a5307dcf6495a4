"""Tensors of Hugging Face folders <-> our parameters: one table of names per format, used in both directions.

Our parameter is named by the class of its layer, the number of its block and its name in the layer. The differences of form are:
GPT-2 stores linear weights transposed; OPT and Llama keep queries, keys and values apart; OPT's position table has two rows in front;
Llama turns feature i with i + E/2, so rows of q and k change places if the model turns neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from model.config import ModelConfig


class Slot(NamedTuple):
    """Where one of our parameters is."""

    kind: str
    """Class of the layer, as `Attention`."""
    block: int
    parameter: str
    """Name in the layer, as `qkv.weight`."""

    @property
    def module(self) -> str:
        """The layer's class and the part of it that owns the parameter, as `Attention.qkv`."""
        return ".".join([self.kind, *self.parameter.split(".")[:-1]])

    @property
    def attribute(self) -> str:
        """`weight` or `bias`."""
        return self.parameter.rpartition(".")[2]


@dataclass(frozen=True)
class Format:
    """How one kind of folder names and shapes its tensors."""

    prefix: str
    """In front of every name but the head's. Folders saved from the bare model lack it."""
    names: dict[str, tuple[str, ...]]
    """Our module -> their modules, whose rows follow each other in ours; `{}` is the block."""
    transposed: bool = False
    position_rows: int = 0
    """Unused rows in front of the position table."""
    always_biased: tuple[str, ...] = ()
    """Modules (by the end of our name) that have a bias in every folder; zero where ours has none."""
    buffers: str = r"(?!)"
    """What the names of tensors match that are computed and not learned, which old versions stored."""


_HEAD = {"Head": ("lm_head",)}

FORMATS: dict[str, Format] = {
    "gpt2": Format(
        prefix="transformer.",
        names={
            "TokenEmbedding": ("wte",),
            "PositionEmbedding": ("wpe",),
            "Attention.norm": ("h.{}.ln_1",),
            "Attention.qkv": ("h.{}.attn.c_attn",),
            "Attention.out": ("h.{}.attn.c_proj",),
            "MLP.norm": ("h.{}.ln_2",),
            "MLP.up": ("h.{}.mlp.c_fc",),
            "MLP.down": ("h.{}.mlp.c_proj",),
            "FinalNorm.norm": ("ln_f",),
            **_HEAD,
        },
        transposed=True,
        always_biased=("norm", "qkv", "out", "up", "down"),
        buffers=r"h\.\d+\.attn\.(bias|masked_bias)",
    ),
    "opt": Format(
        prefix="model.",
        names={
            "TokenEmbedding": ("decoder.embed_tokens",),
            "PositionEmbedding": ("decoder.embed_positions",),
            "Attention.norm": ("decoder.layers.{}.self_attn_layer_norm",),
            "Attention.qkv": tuple(f"decoder.layers.{{}}.self_attn.{part}_proj" for part in "qkv"),
            "Attention.out": ("decoder.layers.{}.self_attn.out_proj",),
            "MLP.norm": ("decoder.layers.{}.final_layer_norm",),
            "MLP.up": ("decoder.layers.{}.fc1",),
            "MLP.down": ("decoder.layers.{}.fc2",),
            "FinalNorm.norm": ("decoder.final_layer_norm",),
            **_HEAD,
        },
        position_rows=2,
        always_biased=("norm",),
    ),
    "llama": Format(
        prefix="model.",
        names={
            "TokenEmbedding": ("embed_tokens",),
            "Attention.norm": ("layers.{}.input_layernorm",),
            "Attention.qkv": tuple(f"layers.{{}}.self_attn.{part}_proj" for part in "qkv"),
            "Attention.out": ("layers.{}.self_attn.o_proj",),
            "GatedMLP.norm": ("layers.{}.post_attention_layernorm",),
            "GatedMLP.gate": ("layers.{}.mlp.gate_proj",),
            "GatedMLP.up": ("layers.{}.mlp.up_proj",),
            "GatedMLP.down": ("layers.{}.mlp.down_proj",),
            "FinalNorm.norm": ("norm",),
            **_HEAD,
        },
        buffers=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    ),
}


def tensor_names(slot: Slot, format: str) -> list[str]:
    """Their names for one of our parameters, in the order of our rows."""
    table = FORMATS[format]
    prefix = "" if slot.kind == "Head" else table.prefix
    return [f"{prefix}{name.format(slot.block)}.{slot.attribute}" for name in table.names[slot.module]]


def folder_names(config: ModelConfig, format: str) -> set[str]:
    """The name of every tensor that a folder of this model has."""
    table = FORMATS[format]
    names: set[str] = set()
    for module in table.names:
        kind, _, owner = module.partition(".")
        if kind == "Head" and config.tie_embeddings:
            continue
        has_bias = owner in table.always_biased or (config.norm_bias if owner == "norm" else config.use_bias)
        for attribute in ("weight", "bias") if owner and has_bias else ("weight",):
            slots = [Slot(kind, block, f"{owner}.{attribute}".lstrip(".")) for block in range(config.num_layers)]
            names.update(name for slot in slots for name in tensor_names(slot, format))
    return names


def to_theirs(ours: Tensor, slot: Slot, config: ModelConfig, format: str) -> list[Tensor]:
    """One of our parameters as the tensors it is in a folder, in the order of `tensor_names`. Meta tensors tell the shapes alone."""
    table = FORMATS[format]
    if slot.kind == "PositionEmbedding":
        return [_with_rows_in_front(ours, table.position_rows - config.position_offset)]
    if slot.module != "Attention.qkv":
        return [_transposed(ours, slot, table)]
    q, k, v = ours.split([config.hidden_size, config.kv_size, config.kv_size])
    if format == "llama" and config.rotary_style == "interleaved":
        q, k = (rows.unflatten(0, (-1, config.head_size // 2, 2)).transpose(1, 2).flatten(0, 2) for rows in (q, k))
    parts = [q, k, v] if len(table.names["Attention.qkv"]) == 3 else [torch.cat([q, k, v])]
    return [_transposed(part, slot, table) for part in parts]


def to_ours(theirs: list[Tensor], slot: Slot, config: ModelConfig, format: str) -> Tensor:
    """The inverse of `to_theirs`."""
    table = FORMATS[format]
    if slot.kind == "PositionEmbedding":
        return _with_rows_in_front(theirs[0], config.position_offset - table.position_rows)
    parts = [_transposed(tensor, slot, table) for tensor in theirs]
    if slot.module != "Attention.qkv":
        return parts[0]
    if format == "llama" and config.rotary_style == "interleaved":
        parts[:2] = (rows.unflatten(0, (-1, 2, config.head_size // 2)).transpose(1, 2).flatten(0, 2) for rows in parts[:2])
    return torch.cat(parts)


def biases_of_zero(slot: Slot, weight: Tensor, config: ModelConfig, format: str) -> dict[str, Tensor]:
    """The biases that every folder of a format has next to this weight and the model does not: their names, and zeros."""
    owner = slot.module.rpartition(".")[2]
    has_bias = config.norm_bias if owner == "norm" else config.use_bias
    if has_bias or slot.attribute != "weight" or owner not in FORMATS[format].always_biased:
        return {}
    names = tensor_names(slot._replace(parameter=f"{owner}.bias"), format)
    return {name: torch.zeros(len(weight), dtype=weight.dtype) for name in names}


def _transposed(tensor: Tensor, slot: Slot, table: Format) -> Tensor:
    linear = "." in slot.parameter and tensor.ndim == 2
    return tensor.T if table.transposed and linear else tensor


def _with_rows_in_front(table: Tensor, rows: int) -> Tensor:
    """With this many rows of zeros in front; fewer than none takes rows away."""
    return table[-rows:] if rows <= 0 else torch.cat([table.new_zeros(rows, table.shape[1]), table])
