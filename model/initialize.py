"""Where first weights come from: drawn layer by layer, or copied from a Hugging Face folder.

Either way a layer's weights depend on the configuration, the seed and its index alone, and each process reads only the tensors of the
layers it builds.
"""

import math

import torch
from torch import nn

from model.config import ModelConfig
from model.hugging_face.folder_weights import FolderWeights
from model.hugging_face.pretrained import check_pretrained, starting_layers
from model.hugging_face.tensors import VOCABULARY, Slot

# What these produce is added to the residual stream once per half-block; GPT-2 shrinks them so that the sum keeps its size.
RESIDUAL_OUTPUTS = ("out.weight", "down.weight")


def draw_weights(module: nn.Module, config: ModelConfig, seed: int, index: int) -> None:
    """Set a layer's weights from (seed, its index in the list) alone, in fp32; no global generator is touched.

    Matrices are normal with `init_std`, those that end a half-block with `init_std` / sqrt(2 * num_layers); norms start at 1, biases at 0.
    """
    # PyTorch takes seeds of 64 bits; products of small ones are not changed by this.
    generator = torch.Generator().manual_seed((seed * 65537 + index) % 2**63)
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
        """Open the folder, if weights come from one, and compare all of it with the model: all processes refuse it with the same message.

        Raises:
            ValueError: Names the file, field or tensor that does not fit or cannot be read.
        """
        self.config, self.seed = config, seed
        pretrained = check_pretrained(config)
        self.folder = FolderWeights(pretrained, config) if pretrained else None
        self.starting_layers = starting_layers(config, pretrained) if pretrained else ()

    @property
    def notes(self) -> list[str]:
        """What of the folder is not used, a line each, and what is, where that is not all of it."""
        if self.folder is None:
            return []
        start = self.config.initialize
        if start.method != "depth" and start.embeddings:
            return self.folder.notes
        layers = f"layers start from layers {', '.join(map(str, self.starting_layers))} of {self.folder.path}"
        return [*self.folder.notes, f"{layers}{'' if start.embeddings else '; embedding and head are drawn'}."]

    def fill(self, module: nn.Module, index: int) -> None:
        """Set the weights of the layer with this index, in the layer's own precision."""
        kind = type(module).__name__
        if self.folder is None or (kind in VOCABULARY and not self.config.initialize.embeddings):
            draw_weights(module, self.config, self.seed, index)
            return
        in_a_block = 2 <= index < 2 + 2 * self.config.num_layers
        block = self.starting_layers[(index - 2) // 2] if in_a_block else 0
        with torch.no_grad():
            for name, weight in module.named_parameters():
                weight.copy_(self.folder.parameter(Slot(kind, block, name)))
