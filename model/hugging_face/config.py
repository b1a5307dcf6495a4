"""`config.json` of a Hugging Face folder <-> ModelConfig, in the format of each family (`model/families.py`).

What a format cannot say but need not (say, that all biases are zero because there are none) is kept in our own key `pretraining` of
the file, so that a folder we wrote comes back as exactly the model it was.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NoReturn, get_type_hints

from ds_configs.errors import shown
from ds_configs.typed import Bounded, convert
from model.config import ModelConfig
from model.families import FAMILIES, preset

OWN_KEY = "pretraining"
# Fields that may differ from what a format says: the weights can be brought into its form.
RESTORED = {
    *("family", "position_offset", "use_bias", "norm_bias", "rotary_style", "rotary_base"),
    *("dropout", "attention_dropout", "init_std"),
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
# How the folders of a family with rotary positions say what they are like.
ROTARY_KEYS = {"rope_theta", "rope_parameters", "rope_scaling", "partial_rotary_factor"}


def from_hugging_face(values: Mapping[str, Any], where: str) -> ModelConfig:
    """The model a `config.json` describes.

    Args:
        values: The file's content.
        where: The file's name, for messages.

    Raises:
        ValueError: If it is another kind of model, or one whose arithmetic differs from ours.
    """
    format = str(values.get("model_type"))
    if format not in FAMILIES:
        raise ValueError(f'{where}: model_type = "{format}" cannot be read. Use a folder of {", ".join(FAMILIES)}.')
    family = FAMILIES[format]
    for key, reason in REFUSED.items():
        if values.get(key):
            raise ValueError(f"{where}: {key}: {reason}")
    read = {}
    for ours, (theirs, default) in family.keys.items():
        read[ours] = values.get(theirs, default)
        if read[ours] is not None or default is not None:  # Only what has none by default may be null.
            counted = default is None or type(default) is int
            _typed(Bounded(int, 1) if counted else type(default), read[ours], theirs, where)
    _check_equal(values, family.required, where)
    if read["activation"] not in family.activations:
        key, _ = family.keys["activation"]
        raise ValueError(f'{where}: {key} = "{read["activation"]}" is unknown here. Known: {", ".join(family.activations)}.')
    read["activation"] = family.activations[read["activation"]]
    read["norm_bias"] = "norm" in family.always_biased
    if family.rotary:
        read["rotary_base"] = _rotary_base(values, where)
    given = {name: value for name, value in read.items() if value is not None}
    restored = {name: kind for name, kind in get_type_hints(ModelConfig).items() if name in RESTORED}
    own = _typed(restored, values.get(OWN_KEY, {}), OWN_KEY, where)
    _typed(list[str] | None, values.get("architectures"), "architectures", where)
    try:
        config = ModelConfig(**{**preset({"family": format, **given}), **own})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    _check_equal(values, {key: getattr(config, name) for key, name in family.repeated.items()}, where)
    return config


def unused_keys(values: Mapping[str, Any]) -> list[str]:
    """What a readable `config.json` sets that neither `from_hugging_face` nor anything else here uses, as "key = value"."""
    format = str(values["model_type"])
    family = FAMILIES[format]
    known = {theirs for theirs, _ in family.keys.values()} | family.required.keys() | family.repeated.keys() | family.merged.keys()
    known |= WITHOUT_EFFECT | REFUSED.keys() | {OWN_KEY} | (ROTARY_KEYS if family.rotary else set())
    ignored = {key: value for key, value in values.items() if key not in known and value}
    for key, (field, otherwise) in family.merged.items():
        theirs, default = family.keys[field]
        value = values.get(key, otherwise)
        if value is not None and value != values.get(theirs, default):
            ignored[key] = value
    ours = [name for name in values.get("architectures") or [] if str(name).lower().startswith(format)]
    if values.get("architectures") and not ours:
        ignored["architectures"] = values["architectures"]
    return [f"{key} = {shown(value)}" for key, value in ignored.items()]


def to_hugging_face(config: ModelConfig, format: str) -> dict[str, Any]:
    """The `config.json` of a model in a format, without token ids and versions.

    Raises:
        ValueError: If the format has no way to say what the model computes; names every field in the way.
    """
    family = FAMILIES[format]
    values: dict[str, Any] = {"architectures": [family.architecture], "model_type": format}
    values |= {theirs: getattr(config, ours) for ours, (theirs, _) in family.keys.items()}
    key, _ = family.keys["activation"]
    values[key] = next((name for name, ours in family.activations.items() if ours == config.activation), next(iter(family.activations)))
    values |= family.required
    values |= {key: getattr(config, field) for key, (field, _) in family.merged.items()}
    values |= {key: getattr(config, field) for key, field in family.repeated.items()}
    if family.rotary:
        values |= {"rope_theta": config.rotary_base, "rope_parameters": {"rope_theta": config.rotary_base, "rope_type": "default"}}
    own = _beyond_the_format(config, format, values)
    return {**values, OWN_KEY: own} if own else values


def _beyond_the_format(config: ModelConfig, format: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that come back otherwise from `values` than they were, if the weights can be brought into the format nevertheless."""
    back = from_hugging_face(values, f"{format} format")
    # Where first weights came from is the run's affair.
    names = [field.name for field in fields(config) if field.name != "initialize"]
    differing = {name: getattr(config, name) for name in names if getattr(config, name) != getattr(back, name)}
    lost = [f"model.{name} = {ours} (it says {getattr(back, name)})" for name, ours in differing.items() if name not in RESTORED]
    if lost:
        raise ValueError(f"the {format} format cannot hold this model: {'; '.join(lost)}. Another --format of inference.export may.")
    return differing


def _check_equal(values: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    for key, value in wanted.items():
        got = values.get(key, value)
        if got is not None and got != value:
            raise ValueError(f"{where}: {key} = {got}; only {value} is computed the way this project does. Use another model.")


def _typed(wanted: Any, value: Any, key: str, where: str) -> Any:
    def refuse(_key: str, problem: str) -> NoReturn:
        raise ValueError(f"{where}: {problem} Does the file belong to the folder?")

    return convert(wanted, value, key, refuse)


def _rotary_base(values: Mapping[str, Any], where: str) -> float:
    """The base of plain rotary positions, from the newer spelling (rope_parameters) or the older ones."""
    _check_equal(values, {"partial_rotary_factor": 1.0}, where)
    bases = [values.get("rope_theta")]
    for name in ("rope_parameters", "rope_scaling"):
        rope = _typed(dict[str, Any], values.get(name) or {}, name, where)
        bases.append(rope.get("rope_theta"))
        plain = {"rope_type": "default", "type": "default", "rope_theta": bases[-1], "partial_rotary_factor": 1.0}
        if unknown := [f"{key} = {shown(value)}" for key, value in rope.items() if value is not None and plain.get(key) != value]:
            raise ValueError(f"{where}: {name} says {', '.join(unknown)}; only plain rotary positions are known. Use another model.")
    said = [_typed(float, base, "rope_theta", where) for base in bases if base is not None]
    if len(set(said)) > 1:
        raise ValueError(f"{where}: rope_theta is {said[0]} in one place and {said[1]} in another. Keep the right one.")
    return said[0] if said else 10000.0
