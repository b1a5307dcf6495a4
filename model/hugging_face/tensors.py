"""Tensors of Hugging Face folders <-> our parameters, by the names of the format's family (`model/families.py`) in both directions.

Our parameter is named by the class of its layer, the number of its block and its name in the layer. The differences of form are:
linear weights may be stored transposed, queries, keys and values apart, and rows in front of the position table; rotary positions turn
feature i with i + E/2, so rows of q and k change places if the model turns neighbours.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.families import FAMILIES, Family
from model.layers import Layer

VOCABULARY = ("TokenEmbedding", "Head")
"""Layers of one row a token, which `initialize.embeddings` may have drawn anew."""


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


def tensor_names(slot: Slot, format: str) -> list[str]:
    """Their names for one of our parameters, in the order of our rows."""
    family = FAMILIES[format]
    prefix = "" if slot.kind == "Head" else family.prefix
    return [f"{prefix}{name.format(slot.block)}.{slot.attribute}" for name in family.tensors[slot.module]]


def stored_tensors(modules: Iterable[tuple[Layer, nn.Module]], config: ModelConfig, format: str) -> Iterator[tuple[Slot, str, Tensor]]:
    """Every tensor of the folder of a model: which of our parameters it is of, its name, and its value.

    A folder also has biases that its format always has and the model leaves out: zeros, told with the weight beside them.
    """
    for entry, module in modules:
        for parameter, weight in module.named_parameters():
            slot, ours = Slot(entry.module.__name__, entry.block, parameter), weight.detach()
            for name, theirs in zip(tensor_names(slot, format), to_theirs(ours, slot, config, format), strict=True):
                yield slot, name, theirs
            owner = slot.module.rpartition(".")[2]
            has_bias = config.norm_bias if owner == "norm" else config.use_bias
            if not has_bias and slot.attribute == "weight" and owner in FAMILIES[format].always_biased:
                for name in tensor_names(slot._replace(parameter=f"{owner}.bias"), format):
                    yield slot, name, ours.new_zeros(len(ours))


def to_theirs(ours: Tensor, slot: Slot, config: ModelConfig, format: str) -> list[Tensor]:
    """One of our parameters as the tensors it is in a folder, in the order of `tensor_names`."""
    family = FAMILIES[format]
    if slot.kind == "PositionEmbedding":
        return [_with_rows_in_front(ours, family.position_rows - config.position_offset)]
    if slot.module != "Attention.qkv":
        return [_transposed(ours, slot, family)]
    q, k, v = ours.split([config.hidden_size, config.kv_size, config.kv_size])
    if family.rotary and config.rotary_style == "interleaved":
        q, k = (rows.unflatten(0, (-1, config.head_size // 2, 2)).transpose(1, 2).flatten(0, 2) for rows in (q, k))
    parts = [q, k, v] if len(family.tensors["Attention.qkv"]) == 3 else [torch.cat([q, k, v])]
    return [_transposed(part, slot, family) for part in parts]


def to_ours(theirs: list[Tensor], slot: Slot, config: ModelConfig, format: str) -> Tensor:
    """The inverse of `to_theirs`."""
    family = FAMILIES[format]
    if slot.kind == "PositionEmbedding":
        return _with_rows_in_front(theirs[0], config.position_offset - family.position_rows)
    parts = [_transposed(tensor, slot, family) for tensor in theirs]
    if slot.module != "Attention.qkv":
        return parts[0]
    if family.rotary and config.rotary_style == "interleaved":
        parts[:2] = (rows.unflatten(0, (-1, 2, config.head_size // 2)).transpose(1, 2).flatten(0, 2) for rows in parts[:2])
    return torch.cat(parts)


def _transposed(tensor: Tensor, slot: Slot, family: Family) -> Tensor:
    linear = "." in slot.parameter and tensor.ndim == 2
    return tensor.T if family.transposed and linear else tensor


def _with_rows_in_front(table: Tensor, rows: int) -> Tensor:
    """With this many rows of zeros in front; fewer than none takes rows away."""
    return table[-rows:] if rows <= 0 else torch.cat([table.new_zeros(rows, table.shape[1]), table])
