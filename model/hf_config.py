"""`config.json` of a Hugging Face folder <-> ModelConfig, for the three formats that can be read and written.

What a format cannot say but need not (say, that all biases are zero because there are none) is kept in our own key `pretraining` of
the file, so that a folder we wrote comes back as exactly the model it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .config import ModelConfig
from .families import FAMILIES

OWN_KEY = "pretraining"
# Fields that may differ from what a format says: the weights can be brought into its form.
RESTORED = {
    "family",
    "position_offset",
    "use_bias",
    "norm_bias",
    "rotary_style",
    "rotary_base",
    "dropout",
    "attention_dropout",
    "init_std",
    "initialize",
}

ARCHITECTURES = {"gpt2": "GPT2LMHeadModel", "opt": "OPTForCausalLM", "llama": "LlamaForCausalLM"}

# Our field -> their key and the value it has when the file leaves it out.
KEYS: dict[str, dict[str, tuple[str, Any]]] = {
    "gpt2": {
        "vocab_size": ("vocab_size", 50257),
        "max_seq_length": ("n_positions", 1024),
        "num_layers": ("n_layer", 12),
        "hidden_size": ("n_embd", 768),
        "num_heads": ("n_head", 12),
        "intermediate_size": ("n_inner", None),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
        "activation": ("activation_function", "gelu_new"),
        "tie_embeddings": ("tie_word_embeddings", True),
        "dropout": ("resid_pdrop", 0.1),
        "attention_dropout": ("attn_pdrop", 0.1),
        "init_std": ("initializer_range", 0.02),
    },
    "opt": {
        "vocab_size": ("vocab_size", 50272),
        "max_seq_length": ("max_position_embeddings", 2048),
        "num_layers": ("num_hidden_layers", 12),
        "hidden_size": ("hidden_size", 768),
        "num_heads": ("num_attention_heads", 12),
        "intermediate_size": ("ffn_dim", 3072),
        "activation": ("activation_function", "relu"),
        "use_bias": ("enable_bias", True),
        "tie_embeddings": ("tie_word_embeddings", True),
        "dropout": ("dropout", 0.1),
        "attention_dropout": ("attention_dropout", 0.0),
        "init_std": ("init_std", 0.02),
    },
    "llama": {
        "vocab_size": ("vocab_size", 32000),
        "max_seq_length": ("max_position_embeddings", 2048),
        "num_layers": ("num_hidden_layers", 32),
        "hidden_size": ("hidden_size", 4096),
        "num_heads": ("num_attention_heads", 32),
        "num_kv_heads": ("num_key_value_heads", None),
        "intermediate_size": ("intermediate_size", 11008),
        "norm_eps": ("rms_norm_eps", 1e-6),
        "activation": ("hidden_act", "silu"),
        "use_bias": ("attention_bias", False),
        "tie_embeddings": ("tie_word_embeddings", False),
        "attention_dropout": ("attention_dropout", 0.0),
        "init_std": ("initializer_range", 0.02),
    },
}

# Their key -> the only value whose arithmetic is ours; left out means this value.
REQUIRED: dict[str, dict[str, Any]] = {
    "gpt2": {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    "opt": {"do_layer_norm_before": True, "_remove_final_layer_norm": False, "layer_norm_elementwise_affine": True},
    "llama": {"rope_scaling": None, "pretraining_tp": 1},
}

_GELUS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
ACTIVATIONS: dict[str, dict[str, str]] = {"gpt2": _GELUS, "opt": _GELUS, "llama": {"silu": "silu_gated"}}


def from_hf(values: Mapping[str, Any], where: str) -> ModelConfig:
    """The model a `config.json` describes.

    Args:
        values: The file's content.
        where: The file's name, for messages.

    Raises:
        ValueError: If it is another kind of model, or one whose arithmetic differs from ours.
    """
    format = values.get("model_type")
    if format not in KEYS:
        raise ValueError(f'{where}: model_type = "{format}" cannot be read. Use a folder of {", ".join(KEYS)}.')
    read = {ours: values.get(theirs, default) for ours, (theirs, default) in KEYS[format].items()}
    _check_required(format, values, read, where)
    if read["activation"] not in ACTIVATIONS[format]:
        key = KEYS[format]["activation"][0]
        raise ValueError(f'{where}: {key} = "{read["activation"]}" is unknown here. Known: {", ".join(ACTIVATIONS[format])}.')
    read["activation"] = ACTIVATIONS[format][read["activation"]]
    if read["intermediate_size"] is None:
        read["intermediate_size"] = 4 * read["hidden_size"]
    if read.get("num_kv_heads") is None:
        read["num_kv_heads"] = read["num_heads"]
    read["norm_bias"] = format != "llama"
    if format == "llama":
        read["rotary_base"] = float((values.get("rope_parameters") or {}).get("rope_theta") or values.get("rope_theta") or 10000.0)
    own = values.get(OWN_KEY, {})
    try:
        return ModelConfig(**{"family": format, **FAMILIES[format], **read, **own})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def to_hf(config: ModelConfig, format: str) -> dict[str, Any]:
    """The `config.json` of a model in a format, without token ids and versions.

    Raises:
        ValueError: If the format has no way to say what the model computes; names every field in the way.
    """
    values: dict[str, Any] = {"architectures": [ARCHITECTURES[format]], "model_type": format}
    values |= {theirs: getattr(config, ours) for ours, (theirs, _) in KEYS[format].items()}
    key = KEYS[format]["activation"][0]
    values[key] = next((name for name, ours in ACTIVATIONS[format].items() if ours == config.activation), values[key])
    values |= REQUIRED[format]
    if format == "gpt2":
        values["embd_pdrop"] = config.dropout
    if format == "opt":
        values["word_embed_proj_dim"] = config.hidden_size
    if format == "llama":
        values |= {"mlp_bias": config.use_bias, "head_dim": config.head_size, "rope_theta": config.rotary_base}
        values["rope_parameters"] = {"rope_theta": config.rotary_base, "rope_type": "default"}
    own = _beyond_the_format(config, format, values)
    return {**values, OWN_KEY: own} if own else values


def _beyond_the_format(config: ModelConfig, format: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that come back otherwise from `values` than they were, if the weights can be brought into the format nevertheless."""
    if config.activation not in ACTIVATIONS[format].values():
        known = ", ".join(dict.fromkeys(ACTIVATIONS[format].values()))
        raise ValueError(f'model.activation = "{config.activation}" does not exist in the {format} format, which knows {known}.')
    back = from_hf(values, f"{format} format")
    differing = {
        field.name: getattr(config, field.name) for field in fields(config) if getattr(config, field.name) != getattr(back, field.name)
    }
    lost = [f"model.{name} = {ours} (it says {getattr(back, name)})" for name, ours in differing.items() if name not in RESTORED]
    if lost:
        raise ValueError(f"the {format} format cannot hold this model: {'; '.join(lost)}. Choose another format.")
    # Where first weights came from is the run's affair.
    return {name: value for name, value in differing.items() if name != "initialize"}


def _check_required(format: str, values: Mapping[str, Any], read: Mapping[str, Any], where: str) -> None:
    wanted = dict(REQUIRED[format])
    if format == "opt":
        wanted["word_embed_proj_dim"] = read["hidden_size"]
    if format == "llama":
        wanted |= {"head_dim": read["hidden_size"] // read["num_heads"], "mlp_bias": read["use_bias"]}
        rope = values.get("rope_parameters") or {}
        if rope.get("rope_type", "default") != "default":
            raise ValueError(
                f'{where}: rope_parameters.rope_type = "{rope["rope_type"]}"; only plain rotary positions ("default") are known.'
            )
    for key, value in wanted.items():
        got = values.get(key, value)
        if got is not None and got != value:
            raise ValueError(f"{where}: {key} = {got}; only {value} is computed the way this project does. Use another model.")
