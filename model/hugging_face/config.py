"""`config.json` of a Hugging Face folder <-> ModelConfig, for the three formats that can be read and written.

What a format cannot say but need not (say, that all biases are zero because there are none) is kept in our own key `pretraining` of
the file, so that a folder we wrote comes back as exactly the model it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from model.config import ModelConfig
from model.families import FAMILIES

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
    "llama": {"pretraining_tp": 1},
}

# Keys that ask for arithmetic no field of ours stands for.
REFUSED = {
    "quantization_config": "its weights are quantised, and would be read as if they were not. Save it unquantised (bf16 or fp32) first.",
    "compression_config": "its weights are compressed, and would be read as if they were not. Save it uncompressed first.",
    "auto_map": "its model is code of its own, which is not run here. Use a folder of transformers' own classes.",
}

# Keys without any part in the arithmetic: where the model is from, what calls it, and what its tokenizer says better.
WITHOUT_EFFECT = {
    *("architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "_attn_implementation_autoset"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "decoder_start_token_id", "prefix"),
    *("use_cache", "return_dict", "output_attentions", "output_hidden_states", "torchscript", "is_decoder", "is_encoder_decoder"),
    *("summary_type", "summary_use_proj", "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "n_ctx"),
    *("task_specific_params", "id2label", "label2id", "problem_type", "finetuning_task", "chunk_size_feed_forward"),
    *("gradient_checkpointing", "reorder_and_upcast_attn"),
}
# Keys that `_check_required`, `_rotary_base` or `to_hugging_face` deal with beside the tables.
_DEALT_WITH = {
    "gpt2": {"embd_pdrop"},
    "opt": {"word_embed_proj_dim"},
    "llama": {"mlp_bias", "head_dim", "rope_theta", "rope_parameters", "rope_scaling", "partial_rotary_factor"},
}

_GELUS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
ACTIVATIONS: dict[str, dict[str, str]] = {"gpt2": _GELUS, "opt": _GELUS, "llama": {"silu": "silu_gated"}}


def from_hugging_face(values: Mapping[str, Any], where: str) -> ModelConfig:
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
    for key, reason in REFUSED.items():
        if values.get(key):
            raise ValueError(f"{where}: {key}: {reason}")
    read = {ours: values.get(theirs, default) for ours, (theirs, default) in KEYS[format].items()}
    _check_types(format, read, where)
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
        read["rotary_base"] = _rotary_base(values, where)
    own = values.get(OWN_KEY, {})
    try:
        return ModelConfig(**{"family": format, **FAMILIES[format], **read, **own})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def unused_keys(values: Mapping[str, Any]) -> list[str]:
    """What a readable `config.json` sets that neither `from_hugging_face` nor anything else here uses, as "key = value"."""
    format = str(values["model_type"])
    known = {theirs for theirs, _ in KEYS[format].values()} | REQUIRED[format].keys() | _DEALT_WITH[format]
    ignored = {key: value for key, value in values.items() if key not in known | WITHOUT_EFFECT | REFUSED.keys() | {OWN_KEY} and value}
    if format == "gpt2" and values.get("embd_pdrop", 0.1) != values.get("resid_pdrop", 0.1):
        ignored["embd_pdrop"] = values.get("embd_pdrop", 0.1)  # there is one dropout for both
    ours = [name for name in values.get("architectures") or [] if str(name).lower().startswith(format)]
    if values.get("architectures") and not ours:
        ignored["architectures"] = values["architectures"]
    return [f"{key} = {_short(value)}" for key, value in ignored.items()]


def to_hugging_face(config: ModelConfig, format: str) -> dict[str, Any]:
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
        # What reads the format before `n_positions` was its name, converters to GGUF among it, looks for `n_ctx`.
        values |= {"embd_pdrop": config.dropout, "n_ctx": config.max_seq_length}
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
    back = from_hugging_face(values, f"{format} format")
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
        wanted |= {"head_dim": read["hidden_size"] // read["num_heads"], "mlp_bias": read["use_bias"], "partial_rotary_factor": 1.0}
    for key, value in wanted.items():
        got = values.get(key, value)
        if got is not None and got != value:
            raise ValueError(f"{where}: {key} = {got}; only {value} is computed the way this project does. Use another model.")


def _check_types(format: str, read: Mapping[str, Any], where: str) -> None:
    """Every value that is read has the type of its default; only what has none by default may be null."""
    for ours, (theirs, default) in KEYS[format].items():
        value = read[ours]
        if value is None and default is None:
            continue
        kind = int if default is None else type(default)
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(f"{where}: {theirs} = {_short(value)}; it must be {_TYPES[kind]}. Does the file belong to the folder?")
        if kind is int and value < 1:
            raise ValueError(f"{where}: {theirs} = {value}; it must be 1 or more. Does the file belong to the folder?")


_TYPES = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


def _rotary_base(values: Mapping[str, Any], where: str) -> float:
    """The base of plain rotary positions, from the newer spelling (rope_parameters) or the older ones."""
    bases = [values["rope_theta"]] if values.get("rope_theta") is not None else []
    for name in ("rope_parameters", "rope_scaling"):
        rope = values.get(name) or {}
        if not isinstance(rope, dict):
            raise ValueError(f"{where}: {name} = {_short(rope)}; it must be an object.")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise ValueError(f'{where}: {name}.rope_type = {_short(kind)}; only plain rotary positions ("default") are known.')
        plain = {"rope_type": kind, "type": kind, "rope_theta": rope.get("rope_theta"), "partial_rotary_factor": 1.0}
        if unknown := [f"{key} = {_short(value)}" for key, value in rope.items() if value is not None and plain.get(key) != value]:
            raise ValueError(f"{where}: {name} says {', '.join(unknown)}; only plain rotary positions are known. Use another model.")
        if rope.get("rope_theta") is not None:
            bases.append(rope["rope_theta"])
    if any(isinstance(base, bool) or not isinstance(base, int | float) for base in bases):
        raise ValueError(f"{where}: rope_theta = {_short(bases[0])}; it must be a number.")
    if len(set(bases)) > 1:
        raise ValueError(f"{where}: rope_theta is {bases[0]} in one place and {bases[1]} in another. Keep the right one.")
    return float(bases[0]) if bases else 10000.0


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
