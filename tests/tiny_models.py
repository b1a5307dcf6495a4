"""Tiny models of every family."""

from pathlib import Path
from typing import Any

import torch

from model.config import InitializeConfig, ModelConfig
from model.families import preset

TINY: dict[str, Any] = {"vocab_size": 61, "max_seq_length": 24, "num_layers": 2, "hidden_size": 24, "num_heads": 2, "intermediate_size": 40}


def tiny(family: str = "gpt2", **fields: Any) -> ModelConfig:
    """A model of a family that fits in a few kilobytes, with any field replaced."""
    return ModelConfig(**preset({"family": family, **TINY, **fields}))


SEED = 5
CASES = {
    "gpt2": tiny("gpt2", dropout=0.1),
    "untied": tiny("gpt2", tie_embeddings=False, use_bias=False),
    "llama": tiny("llama", num_kv_heads=1),
    "opt": tiny("opt"),
}


def large_llama(folder: Path | None = None) -> ModelConfig:
    """A model of some megabytes, so that what is read of its files shows; it starts from a folder if one is given."""
    start = InitializeConfig(method="folder", folder=str(folder)) if folder else InitializeConfig()
    return tiny("llama", num_layers=4, hidden_size=256, num_heads=4, intermediate_size=512, initialize=start)


def batch(config: ModelConfig, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of 24 random tokens and their labels, the same for the same number."""
    tokens = torch.randint(config.vocab_size, (2, 25), generator=torch.Generator().manual_seed(number))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
