"""A family that is not ours becomes one by an entry of the table: transformers' Starcoder2, which takes its parts from all of ours."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Starcoder2Config, Starcoder2ForCausalLM

from model.families import FAMILIES, Family
from model.gpt import GPT
from model.hugging_face.conversion import from_folder, to_folder
from tests.model.hugging_face.test_foreign_folders import edit_config
from tests.model.hugging_face.test_hugging_face import LLAMA, TOKENS, scatter
from tests.tiny_models import tiny

STARCODER2 = Family(
    fields={
        "norm": "layernorm",
        "norm_eps": 1e-5,
        "position": "rotary",
        "activation": "gelu_tanh",
        "use_bias": True,
        "tie_embeddings": True,
    },
    architecture="Starcoder2ForCausalLM",
    keys={
        **FAMILIES["llama"].keys,
        "norm_eps": ("norm_epsilon", 1e-5),
        "activation": ("hidden_act", "gelu_pytorch_tanh"),
        "use_bias": ("use_bias", True),
        "tie_embeddings": ("tie_word_embeddings", True),
        "dropout": ("residual_dropout", 0.0),
    },
    activations={"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"},
    required={"sliding_window": None},
    merged={"embedding_dropout": ("dropout", 0.0)},
    prefix="model.",
    tensors={
        **{ours: theirs for ours, theirs in FAMILIES["llama"].tensors.items() if not ours.startswith("GatedMLP")},
        "MLP.norm": ("layers.{}.post_attention_layernorm",),
        "MLP.up": ("layers.{}.mlp.c_fc",),
        "MLP.down": ("layers.{}.mlp.c_proj",),
    },
    always_biased=("norm",),
)


@pytest.fixture(autouse=True)
def _family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "starcoder2", STARCODER2)


@pytest.mark.parametrize("fields", [{}, {"use_bias": False, "tie_word_embeddings": False, "hidden_act": "gelu"}])
def test_a_folder_of_it_is_read(fields, tmp_path, caplog):
    theirs = Starcoder2ForCausalLM(Starcoder2Config(**{**LLAMA, "rope_theta": 5e4, "residual_dropout": 0.1, **fields})).eval()
    scatter(theirs)
    theirs.save_pretrained(tmp_path)
    config, model = from_folder(tmp_path)
    assert (config.family, config.norm, config.rotary_base, config.dropout) == ("starcoder2", "layernorm", 5e4, 0.1)
    torch.testing.assert_close(model.eval()(TOKENS), theirs(TOKENS).logits, atol=2e-5, rtol=0)  # fp32, sums in other orders
    assert caplog.messages == [f"{tmp_path}/config.json: not used here: embedding_dropout = 0.0."]


@pytest.mark.parametrize("fields", [{"dropout": 0.1}, {"rotary_style": "interleaved", "num_kv_heads": 1, "use_bias": False}])
def test_a_model_of_it_is_exported_and_comes_back_bit_for_bit(fields, tmp_path):
    config = tiny("starcoder2", norm_bias=True, **fields)
    model = GPT(config, seed=0).eval()
    scatter(model)
    to_folder(model, config, tmp_path, "starcoder2")
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(theirs(TOKENS).logits, model(TOKENS), atol=2e-5, rtol=0)

    back_config, back = from_folder(tmp_path)
    assert back_config == config
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in back.state_dict().items())


def test_what_its_format_says_otherwise_is_refused(tmp_path):
    config = tiny("starcoder2")
    to_folder(GPT(config, seed=0), config, tmp_path, "starcoder2")
    edit_config(tmp_path, sliding_window=16)
    with pytest.raises(ValueError, match="sliding_window = 16; only None is computed the way this project does"):
        from_folder(tmp_path)
    with pytest.raises(ValueError, match=r"model.position = learned \(it says rotary\)"):
        to_folder(GPT(config), replace(config, position="learned"), tmp_path, "starcoder2")
