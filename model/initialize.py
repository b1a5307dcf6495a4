"""Where first weights come from: drawn layer by layer, or copied from a Hugging Face folder.

Either way a layer's weights depend on the configuration, the seed and its index alone, and each process reads only the tensors of the
layers it builds.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from .config import ModelConfig
from .hf_folder import Folder
from .hf_tensors import Slot, tensor_names

# What these produce is added to the residual stream once per half-block; GPT-2 shrinks them so that the sum keeps its size.
RESIDUAL_OUTPUTS = ("out.weight", "down.weight")

# Fields whose value is in the weights: a folder that differs in one of them is another model.
SHARED_FIELDS = ("hidden_size", "num_heads", "num_kv_heads", "norm", "position", "activation", "intermediate_size", "use_bias", "norm_bias")


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


class Weights:
    """The first weights of every layer of one run."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        """Open the folder, if weights come from one, and check that it fits.

        Raises:
            ValueError: Names what does not fit, or cannot be read.
        """
        self.config, self.seed = config, seed
        self.folder: Folder | None = None
        self.source_layers: tuple[int, ...] = ()
        if config.initialize.folder is not None:
            self.folder = Folder(config.initialize.folder)
            _check_same_model(config, self.folder)
            self.source_layers = _source_layers(config, self.folder)

    def fill(self, module: nn.Module, index: int) -> None:
        """Set the weights of the layer with this index.

        Raises:
            ValueError: Names the tensor that is missing or has another shape.
        """
        if self.folder is None or self._is_fresh(type(module).__name__):
            draw_weights(module, self.config, self.seed, index)
            return
        fill_from_folder(module, self.folder, self._source_block(index), self.config)

    def check(self, module: nn.Module, index: int) -> None:
        """Compare names and shapes of a layer's tensors with the folder's, without reading values.

        Raises:
            ValueError: Names the tensor that is missing or has another shape.
        """
        kind = type(module).__name__
        if self.folder is None or self._is_fresh(kind):
            return
        for name, weight in module.named_parameters():
            self.folder.check(Slot(kind, self._source_block(index), name), weight.shape, self.config)

    def _is_fresh(self, kind: str) -> bool:
        return kind in ("TokenEmbedding", "Head") and not self.config.initialize.embeddings

    def _source_block(self, index: int) -> int:
        in_a_block = 2 <= index < 2 + 2 * self.config.num_layers
        return self.source_layers[(index - 2) // 2] if in_a_block else 0


def fill_from_folder(module: nn.Module, folder: Folder, block: int, config: ModelConfig) -> None:
    """Copy a layer's weights from a block of a folder, in the layer's own precision."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(folder.parameter(Slot(type(module).__name__, block, name), weight.shape, config))


def default_source_layers(source: int, target: int) -> tuple[int, ...]:
    """Which source layer each target layer starts from: the first half from the front, the second half from the back.

    12 -> 16 takes the first 8 and the last 8, 12 -> 10 the first 5 and the last 5. Beyond twice the depth, each layer is repeated in place.
    """
    front = (target + 1) // 2
    if front > source:
        return tuple(layer * source // target for layer in range(target))
    return (*range(front), *range(source - (target - front), source))


def _source_layers(config: ModelConfig, folder: Folder) -> tuple[int, ...]:
    source, target = folder.config.num_layers, config.num_layers
    if config.initialize.method == "folder" and source != target:
        raise ValueError(
            f'{folder.path}: has {source} layers and model.num_layers = {target}. Set model.initialize.method = "depth" to '
            f"start from copies of them, or model.num_layers = {source}."
        )
    layers = config.initialize.layers or default_source_layers(source, target)
    outside = [layer for layer in layers if not 0 <= layer < source]
    if outside:
        raise ValueError(f"{folder.path}: has layers 0 to {source - 1}, and model.initialize.layers names {outside[0]}. Name others.")
    return layers


def _check_same_model(config: ModelConfig, folder: Folder) -> None:
    """Refuse a folder whose weights mean something else, before a tensor is read."""
    where, source = folder.path / "config.json", folder.config
    fields = [*SHARED_FIELDS, "max_seq_length" if config.position == "learned" else "rotary_base"]
    differing = [name for name in fields if getattr(source, name) != getattr(config, name)]
    if folder.format != config.family and {"norm", "position", "activation"} & set(differing):
        lacking = tensor_names(Slot("Attention", 0, "qkv.weight"), config.family)[0]
        raise ValueError(
            f'{where}: its {folder.format} model ({source.norm}, {source.position} positions, {source.activation}) has no "{lacking}", '
            f'which model.family = "{config.family}" ({config.norm}, {config.position} positions, {config.activation}) starts from. '
            f"Use a folder of that family, or change model.family."
        )
    if differing:
        pairs = ", ".join(f"{name} = {getattr(source, name)} (model.{name} = {getattr(config, name)})" for name in differing)
        raise ValueError(f"{where}: {pairs}. Give the model the folder's values, or use another folder.")
    if config.initialize.embeddings and config.tie_embeddings and not source.tie_embeddings:
        raise ValueError(f'{where}: "lm_head.weight" is a matrix of its own and model.tie_embeddings is true. Set it to false.')
