"""Folders made elsewhere: what they say lack, or hold beyond a model of ours is refused, or named if it has no effect."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel, LlamaConfig

from model.config import InitializeConfig, ModelConfig
from model.families import preset
from model.gpt import GPT
from model.hugging_face.conversion import from_folder, to_folder
from model.hugging_face.pretrained import complete_from_folder, read_pretrained
from model.initialize import Weights
from tests.model.hugging_face.test_hugging_face import LLAMA, THEIRS, TOKENS, saved
from tests.tiny_models import tiny

Damage = Callable[[Path], None]


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def edit_tensors(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Add, replace or (None) remove tensors; dots in their names are written as "__"."""
    stored = load_file(folder / "model.safetensors") | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    kept = {name: tensor for name, tensor in stored.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def says(**values: Any) -> Damage:
    return lambda folder: edit_config(folder, **values)


def holds(**tensors: torch.Tensor | None) -> Damage:
    return lambda folder: edit_tensors(folder, **tensors)


# As fp8 folders are: a weight of eight bits, and the inverse of its scale beside it.
QUANTISED = holds(
    model__layers__0__self_attn__q_proj__weight=torch.zeros(24, 24).to(torch.float8_e4m3fn),
    model__layers__0__self_attn__q_proj__weight_scale_inv=torch.ones(1, 1),
)
SCALE = "model.layers.0.self_attn.q_proj.weight_scale_inv"
BIASED_LIKE_QWEN = holds(model__layers__0__self_attn__q_proj__bias=torch.ones(24), model__layers__1__self_attn__q_proj__bias=torch.ones(24))


def quantised_with_an_index_without_the_scale(folder: Path) -> None:
    QUANTISED(folder)
    names = load_file(folder / "model.safetensors").keys() - {SCALE}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def index_that_names_another_tensor(folder: Path) -> None:
    quantised_with_an_index_without_the_scale(folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    index["weight_map"]["other"] = "model-00001-of-00001.safetensors"
    path.write_text(json.dumps(index), encoding="utf-8")


def write_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"metadata": {}}', encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        ("llama", says(quantization_config={"quant_method": "fp8"}), "config.json: quantization_config: its weights are quantised"),
        ("llama", QUANTISED, f'holds "{SCALE}", which'),
        ("llama", quantised_with_an_index_without_the_scale, f'holds "{SCALE}", which'),
        (
            "llama",
            holds(model__norm__weight=torch.ones(24, dtype=torch.int8)),
            '"model.norm.weight" is stored as I8: a quantised model would be read as raw numbers.',
        ),
        (
            "llama",
            BIASED_LIKE_QWEN,
            'holds "model.layers.0.self_attn.q_proj.bias" and 1 more, which the llama model of its config.json does not have',
        ),
        (
            "llama-tied",
            holds(lm_head__weight=torch.ones(61, 24)),
            '"lm_head.weight" is not the embedding, and its config.json says tie_word_embeddings = true.',
        ),
        ("gpt2", says(n_layer=1), 'holds "transformer.h.1.attn.c_attn.bias" and 11 more, which the gpt2 model'),
        ("opt", says(auto_map={"AutoModel": "m.M"}), "auto_map: its model is code of its own"),
        (
            "llama",
            says(rope_scaling={"type": "linear", "factor": 2.0}),
            'rope_scaling says type = "linear", factor = 2.0; only plain',
        ),
        (
            "llama",
            says(rope_parameters={"rope_type": "yarn"}),
            'says rope_type = "yarn"; only plain rotary positions are known.',
        ),
        ("llama", says(rope_parameters={"rope_type": "default", "factor": 4.0}), "rope_parameters says factor = 4.0; only plain rotary"),
        ("llama", says(rope_parameters={"partial_rotary_factor": 0.5}), "rope_parameters says partial_rotary_factor = 0.5"),
        ("llama", says(partial_rotary_factor=0.5), "partial_rotary_factor = 0.5; only 1.0 is computed the way this project does."),
        ("llama", says(rope_theta=5e5), "rope_theta is 500000.0 in one place and 10000.0 in another. Keep the right one."),
        ("gpt2", says(tie_word_embeddings="false"), 'tie_word_embeddings = "false", which is a string; it must be true or false.'),
        ("llama", says(pretraining={"rotary_style": "neox"}), 'pretraining.rotary_style = "neox"'),
        ("llama", says(pretraining={"num_layers": 1.5}), 'config.json: unknown key "pretraining.num_layers".'),
        ("llama", says(architectures=5), "architectures = 5"),
        ("gpt2", says(n_head=0), "n_head = 0; it must be an integer of 1 or more."),
        ("opt", says(hidden_size=None), "hidden_size = null; it must be an integer."),
        ("opt", says(word_embed_proj_dim=12), "word_embed_proj_dim = 12; only 24 is computed the way this project does."),
        ("llama", index_that_names_another_tensor, 'index.json: "other" is not in model-00001-of-00001.safetensors. Fetch'),
        ("gpt2", write_index, 'its "weight_map" does not say where the tensors are.'),
        ("llama", says(model_type="bert"), 'config.json: model_type = "bert" cannot be read. Use a folder of gpt2, llama, opt.'),
        ("llama", says(model_type=["llama"]), "config.json: model_type = \"['llama']\" cannot be read."),
        ("llama", says(hidden_act="swiglu"), 'hidden_act = "swiglu" is unknown here. Known: silu.'),
        ("llama", says(head_dim=32), "head_dim = 32; only 6 is computed"),
        ("llama", says(num_attention_heads=5, head_dim=4), "num_heads = 5 does not divide hidden_size = 24"),
        ("llama", says(intermediate_size=48), '"model.layers.0.mlp.gate_proj.weight" has shape (40, 24); the model needs (48, 24)'),
        (
            "llama",
            says(vocab_size=64),
            '"model.embed_tokens.weight" has shape (61, 24); the model needs (64, 24). Does its config.json',
        ),
        (
            "llama",
            holds(lm_head__weight=None),
            'has no "lm_head.weight". model.tie_embeddings is false. Was it trained with tied',
        ),
        ("llama", holds(model__layers__1__self_attn__k_proj__weight=None), 'has no "model.layers.1.self_attn.k_proj.weight"'),
        (
            "llama",
            lambda folder: (folder / "model.safetensors").unlink(),
            "has neither model.safetensors nor model.safetensors.index.json",
        ),
        ("llama", lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "model.safetensors: cannot be read"),
        ("llama", lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
        (
            "llama",
            lambda folder: (folder / "config.json").write_text("[]"),
            "config.json: holds no JSON object. Name a Hugging Face folder.",
        ),
    ],
)
def test_what_a_folder_says_lacks_or_holds_that_would_change_the_model_is_refused(kind, damage, message, tmp_path):
    saved(THEIRS[kind], tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError) as error:
        from_folder(tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_biases_that_an_export_left_out_must_still_be_zero(tmp_path):
    config = tiny("gpt2", use_bias=False)
    to_folder(GPT(config, seed=0), config, tmp_path, "gpt2")
    edit_tensors(tmp_path, transformer__h__1__mlp__c_fc__bias=torch.ones(40))
    with pytest.raises(ValueError, match=r'"transformer.h.1.mlp.c_fc.bias" is not zero, and model.use_bias is false'):
        from_folder(tmp_path)


def test_a_biased_norm_under_a_model_without_biases_is_refused_before_anything_is_built(tmp_path):
    config = tiny("gpt2", use_bias=False)
    to_folder(GPT(config, seed=0), config, tmp_path, "gpt2")
    edit_tensors(tmp_path, transformer__ln_f__bias=torch.ones(24))
    with pytest.raises(ValueError, match=r'"transformer.ln_f.bias" is not zero, and model.norm_bias is false'):
        Weights(replace(config, initialize=InitializeConfig(method="folder", folder=str(tmp_path))), seed=0)


@pytest.mark.parametrize("eps", [1e-6, 1e-3])
def test_a_folder_with_another_norm_eps_is_refused(eps, tmp_path):
    saved(LlamaConfig(**LLAMA, rms_norm_eps=eps), tmp_path)
    config = tiny("llama", num_heads=4, num_kv_heads=2, initialize=InitializeConfig(method="folder", folder=str(tmp_path)))
    with pytest.raises(ValueError, match=rf"norm_eps = {eps} \(model.norm_eps = 1e-05\)"):
        Weights(config, seed=0)
    theirs = GPT(replace(config, norm_eps=eps), seed=0)
    assert theirs.config.norm_eps == eps


def test_plain_rotary_positions_load_in_every_spelling(tmp_path):
    theirs = saved(LlamaConfig(**LLAMA, rope_theta=5e4), tmp_path)
    plain = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    older = {key: value for key, value in plain.items() if key not in ("rope_parameters", "rope_theta")}
    for spelling in (
        {"rope_theta": 5e4, "rope_scaling": {"rope_type": "default"}},
        {"rope_theta": 50000, "rope_scaling": {"type": "default"}},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 5e4}},
        {"rope_theta": 5e4, "rope_scaling": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 1.0}},
    ):
        (tmp_path / "config.json").write_text(json.dumps({**older, **spelling}), encoding="utf-8")
        _, model = from_folder(tmp_path)
        torch.testing.assert_close(model.eval()(TOKENS), theirs(TOKENS).logits, atol=2e-5, rtol=0)  # fp32, sums in other orders


def test_what_has_no_effect_is_named_and_the_model_is_the_original(tmp_path, caplog):
    theirs = saved(THEIRS["gpt2"], tmp_path / "gpt2")
    mask = torch.ones(24, 24, dtype=torch.bool).tril()
    edit_tensors(tmp_path / "gpt2", transformer__h__0__attn__bias=mask, transformer__h__1__attn__bias=mask.clone())
    edit_tensors(tmp_path / "gpt2", lm_head__weight=theirs.state_dict()["transformer.wte.weight"].clone())
    edit_config(tmp_path / "gpt2", embd_pdrop=0.0, architectures=["Other"], sliding_window=64, unused=None)
    _, model = from_folder(tmp_path / "gpt2")
    torch.testing.assert_close(model.eval()(TOKENS), theirs(TOKENS).logits, atol=2e-5, rtol=0)
    folder = tmp_path / "gpt2"
    assert caplog.messages == [
        f'{folder}/config.json: not used here: sliding_window = 64, embd_pdrop = 0.0, architectures = ["Other"].',
        f'{folder}: not used: "transformer.h.0.attn.bias" and 1 more, which is computed and not learned.',
        f'{folder}: not used: "lm_head.weight", which repeats the embedding.',
    ]


def test_of_a_single_file_and_an_index_the_one_that_transformers_reads_is_read_and_the_other_named(tmp_path, caplog):
    theirs = saved(THEIRS["gpt2"], tmp_path)
    GPT2LMHeadModel(THEIRS["gpt2"]).save_pretrained(tmp_path, max_shard_size="5KB")  # It leaves the file of the first save there.
    _, model = from_folder(tmp_path)
    torch.testing.assert_close(model.eval()(TOKENS), theirs(TOKENS).logits, atol=2e-5, rtol=0)
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}/model.safetensors.index.json: not used: model.safetensors is there too")


def test_a_stored_head_that_becomes_the_models_own_is_not_said_to_be_unused(tmp_path):
    theirs = saved(THEIRS["gpt2"], tmp_path)
    edit_tensors(tmp_path, lm_head__weight=theirs.state_dict()["transformer.wte.weight"].clone())
    assert Weights(config_of({"from": str(tmp_path), "tie_embeddings": False}), seed=0).notes == []


@pytest.mark.parametrize("kind", THEIRS)
def test_a_folder_as_transformers_writes_it_leaves_nothing_to_mention(kind, tmp_path, caplog):
    saved(THEIRS[kind], tmp_path)
    from_folder(tmp_path)
    assert caplog.messages == []


def config_of(section: dict[str, Any]) -> ModelConfig:
    fields = preset(complete_from_folder(section))
    start = fields.pop("initialize")
    return ModelConfig(**fields, initialize=InitializeConfig(**start))


def test_a_model_section_of_one_key_is_the_folders_model_with_its_weights(tmp_path):
    theirs = saved(LlamaConfig(**LLAMA, rms_norm_eps=1e-6, rope_theta=5e5, attention_bias=True, mlp_bias=True), tmp_path)
    config = config_of({"from": str(tmp_path)})
    assert config.initialize == InitializeConfig(method="folder", folder=str(tmp_path))
    torch.testing.assert_close(GPT(config, seed=0).eval()(TOKENS), theirs(TOKENS).logits, atol=2e-5, rtol=0)


def test_what_the_section_sets_itself_stands_over_the_folder(tmp_path):
    saved(THEIRS["gpt2"], tmp_path)
    folder = str(tmp_path)
    deeper = config_of({"from": folder, "num_layers": 3, "dropout": 0.0, "initialize": {"method": "depth"}})
    assert (deeper.num_layers, deeper.dropout, deeper.attention_dropout) == (3, 0.0, 0.0)
    assert Weights(deeper, seed=0).notes == [f"layers start from layers 0, 1, 1 of {folder}."]
    other = config_of({"from": folder, "vocab_size": 97, "initialize": {"embeddings": False}})
    assert other.initialize == InitializeConfig(method="folder", folder=folder, embeddings=False)
    assert GPT(other, seed=0).get_parameter("0.weight").shape == (97, 24)
    assert Weights(other, seed=0).notes == [f"layers start from layers 0, 1 of {folder}; embedding and head are drawn."]
    drawn = config_of({"from": folder, "initialize": {"method": "scratch"}})
    assert drawn == replace(read_pretrained(folder).config, initialize=InitializeConfig())


def test_layers_that_are_not_copied_are_compared_with_their_config_too(tmp_path):
    saved(THEIRS["llama"], tmp_path)
    edit_tensors(tmp_path, model__layers__1__mlp__up_proj__weight=None)
    config = config_of({"from": str(tmp_path), "num_layers": 1, "initialize": {"method": "depth", "layers": (0,)}})
    with pytest.raises(ValueError, match=r'has no "model.layers.1.mlp.up_proj.weight". Is the folder complete'):
        Weights(config, seed=0)


def test_a_recorded_section_serves_where_its_folder_is_gone_and_no_other_does(tmp_path):
    saved(THEIRS["opt"], tmp_path / "opt")
    section = {"from": str(tmp_path / "opt"), "dropout": 0.2}
    recorded = json.loads(json.dumps({"from": section["from"], **preset(complete_from_folder(section))}))
    assert complete_from_folder(section, recorded) == complete_from_folder(section)
    (tmp_path / "opt").rename(tmp_path / "elsewhere")
    assert preset(complete_from_folder(section, recorded)) == {key: value for key, value in recorded.items() if key != "from"}
    for record in (None, {**recorded, "from": "another"}):
        with pytest.raises(ValueError, match=r"model\.from: .*opt: no such folder"):
            complete_from_folder(section, record)
    # A folder that cannot be looked into is as good as gone; a name that no disk takes stands for it, as permissions stop no root.
    unreadable = {**section, "from": "x" * 300}
    assert preset(complete_from_folder(unreadable, {**recorded, "from": unreadable["from"]}))
    with pytest.raises(ValueError, match=r"model\.from: x+: cannot be read \(File name too long\)"):
        complete_from_folder(unreadable)
    with pytest.raises(ValueError, match=r"model\.from = 3; it must be the path"):
        complete_from_folder({"from": 3})
