"""Hugging Face folders of tiny models with random weights, whose text is as good as noise but always the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.config import TokenizerConfig
from data.tokenizers.trainers import train

NUM_TOKENS, VOCAB_SIZE = 300, 310
"""Ten ids are no tokens."""


def save_tiny(family: str, path: Path, verse: Path, *, positions: int, **changes: Any) -> Path:
    """A folder of a family (gpt2, opt, llama) with a byte-level tokenizer; `changes` are values of its configuration."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

    train([verse.read_text(encoding="utf-8")], TokenizerConfig(kind="byte_bpe", vocab_size=NUM_TOKENS), path)
    torch.manual_seed(1)
    ids = {"vocab_size": VOCAB_SIZE, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    size: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": positions}
    model: Any
    if family == "gpt2":
        gpt2 = {"n_positions": positions, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.4}
        model = GPT2LMHeadModel(GPT2Config(**ids | gpt2 | changes))
    elif family == "opt":
        opt = {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.4}
        model = OPTForCausalLM(OPTConfig(**ids | size | opt | changes))
    else:
        llama = {"num_key_value_heads": 2, "intermediate_size": 64, "initializer_range": 0.4}
        model = LlamaForCausalLM(LlamaConfig(**ids | size | llama | changes))
    model.save_pretrained(path)
    return path
