"""Folders of transformers' own models in, and ours out and back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from model.config import ModelConfig
from model.gpt import GPT
from model.hugging_face import conversion
from model.hugging_face.conversion import from_folder, to_folder
from model.hugging_face.tensors import Slot, tensor_names, to_theirs
from model.layers import layers
from model.layers.cross_entropy import loss
from tests.tiny_models import tiny

GPT2 = {"vocab_size": 61, "n_positions": 24, "n_embd": 24, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
OPT = {
    **{"vocab_size": 61, "max_position_embeddings": 24, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"ffn_dim": 40, "word_embed_proj_dim": 24, "bos_token_id": 0, "eos_token_id": 0},
}
LLAMA = {
    **{"vocab_size": 61, "max_position_embeddings": 24, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "intermediate_size": 40, "bos_token_id": 0, "eos_token_id": 0},
}
THEIRS: dict[str, Any] = {
    "gpt2": GPT2Config(**GPT2),
    "gpt2-untied-54": GPT2Config(**{**GPT2, "n_embd": 108}, tie_word_embeddings=False, activation_function="gelu", n_inner=64),
    "gpt2-relu": GPT2Config(**GPT2, activation_function="relu", layer_norm_epsilon=1e-3),
    "opt": OPTConfig(**OPT),
    "opt-untied-54": OPTConfig(**{**OPT, "hidden_size": 108, "word_embed_proj_dim": 108}, tie_word_embeddings=False),
    "opt-no-biases": OPTConfig(**OPT, enable_bias=False, activation_function="gelu"),
    "llama": LlamaConfig(**LLAMA),
    "llama-biased-54": LlamaConfig(**{**LLAMA, "hidden_size": 216}, attention_bias=True, mlp_bias=True, rope_theta=5e5),
    "llama-tied": LlamaConfig(**{**LLAMA, "num_key_value_heads": 4}, tie_word_embeddings=True, rms_norm_eps=1e-5),
}
CLASSES = {"gpt2": GPT2LMHeadModel, "opt": OPTForCausalLM, "llama": LlamaForCausalLM}

OURS: dict[str, tuple[ModelConfig, str]] = {
    "gpt2-as-gpt2": (tiny("gpt2", dropout=0.1), "gpt2"),
    "gpt2-as-opt": (tiny("gpt2"), "opt"),
    "gpt2-as-opt-54": (tiny("gpt2", hidden_size=108, tie_embeddings=False), "opt"),
    "gpt2-no-biases": (tiny("gpt2", use_bias=False, activation="gelu_tanh"), "gpt2"),
    "gpt2-no-biases-as-opt": (tiny("gpt2", use_bias=False, tie_embeddings=False), "opt"),
    "opt-as-opt": (tiny("opt"), "opt"),
    "opt-no-biases": (tiny("opt", use_bias=False, norm_bias=True), "opt"),
    "llama": (tiny("llama"), "llama"),
    "llama-grouped-54": (tiny("llama", hidden_size=216, num_heads=4, num_kv_heads=2, rotary_base=5e5), "llama"),
    "llama-interleaved": (tiny("llama", num_heads=6, num_kv_heads=2, rotary_style="interleaved"), "llama"),
    "llama-interleaved-biased-tied": (tiny("llama", rotary_style="interleaved", use_bias=True, tie_embeddings=True), "llama"),
    "gpt2-with-llamas-fields": (tiny("gpt2", norm="rmsnorm", position="rotary", activation="silu_gated"), "llama"),
}
# Token 1 is OPT's padding, whose embedding transformers gives no gradient.
TOKENS = torch.randint(2, 61, (3, 24), generator=torch.Generator().manual_seed(1))


def scatter(model: nn.Module) -> None:
    """Give every parameter, norms and biases too, random values that keep logits near 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name or "ln_" in name else 0.0, 0.05, generator=generator)


def saved(config: Any, folder: Path) -> nn.Module:
    model = CLASSES[config.model_type](config).eval()
    scatter(model)
    model.save_pretrained(folder)
    return model


def ours(config: ModelConfig) -> GPT:
    model = GPT(config, seed=0).eval()
    scatter(model)
    return model


def gradients_by_their_names(model: GPT, config: ModelConfig, format: str) -> dict[str, torch.Tensor]:
    found = {}
    for entry in layers(config)[: -1 if config.tie_embeddings else None]:
        for name, weight in model.get_submodule(str(entry.index)).named_parameters():
            slot = Slot(entry.module.__name__, entry.block, name)
            assert weight.grad is not None
            found |= dict(zip(tensor_names(slot, format), to_theirs(weight.grad, slot, config, format), strict=True))
    return found


@pytest.mark.parametrize("name", THEIRS)
def test_an_imported_model_computes_the_same_logits_and_gradients(name, tmp_path):
    theirs = saved(THEIRS[name], tmp_path)
    config, model = from_folder(tmp_path)
    model.eval()
    their_logits = theirs(TOKENS).logits
    # fp32: both sum the same products in different orders.
    torch.testing.assert_close(model(TOKENS), their_logits, atol=2e-5, rtol=0)

    loss(model(TOKENS), TOKENS).backward()
    functional.cross_entropy(their_logits.flatten(0, 1), TOKENS.flatten()).backward()
    mine = gradients_by_their_names(model, config, THEIRS[name].model_type)
    wanted = {key: weight.grad for key, weight in theirs.named_parameters()}
    assert mine.keys() == wanted.keys()
    for key, gradient in wanted.items():
        assert gradient is not None
        # A key's bias shifts all scores of a query alike, so its true gradient is zero and a ratio means nothing.
        scale = max(gradient.norm().item(), 1e-3)
        assert (mine[key] - gradient).norm().item() / scale < 1e-4, key


@pytest.mark.parametrize("name", OURS)
def test_an_exported_model_computes_the_same_logits_in_transformers_and_comes_back_bit_for_bit(name, tmp_path):
    config, format = OURS[name]
    model = ours(config)
    to_folder(model, config, tmp_path, format)

    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    torch.testing.assert_close(theirs.eval()(TOKENS).logits, model(TOKENS), atol=2e-5, rtol=0)  # fp32, sums in other orders

    back_config, back = from_folder(tmp_path)
    assert back_config == config
    state = back.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_a_pad_token_and_attention_mask_work_on_an_opt_export(tmp_path):
    config = tiny("gpt2")
    model = ours(config)
    to_folder(model, config, tmp_path, "opt")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    padded = torch.cat([torch.zeros(3, 2, dtype=torch.int64), TOKENS[:, :10]], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :2] = 0
    logits = theirs(padded, attention_mask=mask).logits[:, 2:]
    torch.testing.assert_close(logits, model(TOKENS[:, :10]), atol=2e-5, rtol=0)  # left padding moves no position


def test_a_large_model_is_written_in_several_files_with_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "SHARD_BYTES", 20_000)
    config = tiny("llama")
    model = ours(config)
    to_folder(model, config, tmp_path, "llama")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    assert files == sorted(set(index["weight_map"].values()))
    assert all(path.stat().st_size < 25_000 for path in tmp_path.glob("*.safetensors"))
    logits = AutoModelForCausalLM.from_pretrained(tmp_path)(TOKENS).logits
    torch.testing.assert_close(logits, model(TOKENS), atol=2e-5, rtol=0)
    _, back = from_folder(tmp_path)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in back.state_dict().items())


def test_a_bf16_model_is_written_and_loaded_in_bf16(tmp_path):
    config = tiny("gpt2")
    model = ours(config).bfloat16()
    to_folder(model, config, tmp_path, "gpt2")
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    _, back = from_folder(tmp_path)
    assert all(torch.equal(value, model.state_dict()[key].float()) for key, value in back.state_dict().items())


def test_a_folder_saved_from_the_bare_model_is_read_too(tmp_path):
    theirs = saved(THEIRS["gpt2"], tmp_path / "whole")
    bare: Any = theirs.transformer
    bare.save_pretrained(tmp_path / "bare")
    assert "wte.weight" in load_file(tmp_path / "bare" / "model.safetensors")
    _, model = from_folder(tmp_path / "bare")
    torch.testing.assert_close(model.eval()(TOKENS), theirs(TOKENS).logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "format", "message"),
    [
        (tiny("gpt2", position="rotary"), "gpt2", "the gpt2 format cannot hold this model: model.position = rotary (it says learned)"),
        (tiny("llama", num_kv_heads=1), "opt", "model.activation = silu_gated (it says gelu)"),
        (tiny("llama"), "gpt2", "model.norm = rmsnorm (it says layernorm); model.position = rotary (it says learned); model.activation"),
        (tiny("gpt2", num_kv_heads=1), "gpt2", "model.num_kv_heads = 1 (it says 2)"),
        (tiny("gpt2", norm_eps=1e-6), "opt", "model.norm_eps = 1e-06 (it says 1e-05)"),
        (tiny("gpt2"), "bert", 'format "bert" is unknown. Use gpt2, llama, opt.'),
    ],
)
def test_a_model_that_a_format_cannot_hold_is_refused_before_anything_is_written(tmp_path, config, format, message):
    with pytest.raises(ValueError) as error:
        to_folder(GPT(config), config, tmp_path / "out", format)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()
