"""The Hugging Face folder that a model starts from, as far as its `config.json` tells: does it fit, and what is left for it to say?

Tensors are read in `folder_weights.py`. Neither torch nor DeepSpeed is needed here, so that a configuration can be checked in a moment.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ds_configs.atomic_files import read_object
from model.config import ModelConfig
from model.hugging_face.config import from_hugging_face, unused_keys

INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"
"""Where the tensors are: the first names the files of several, the second is the only one."""

FROM = "from"
"""The key of the model section that names a folder to take every field from that the section does not set."""

# Fields whose value is in the weights, or decides what is computed with them: a folder that differs in one of them is another model.
SHARED_FIELDS = (
    *("hidden_size", "num_heads", "num_kv_heads", "norm", "norm_eps", "position", "activation", "intermediate_size"),
    *("use_bias", "norm_bias"),
)


@dataclass(frozen=True)
class PretrainedModel:
    """The model of a folder, in our terms. `format` is the folder's model_type; `notes` say what of its config.json is not used."""

    path: Path
    format: str
    config: ModelConfig
    notes: tuple[str, ...] = ()


def read_pretrained(folder: str | Path) -> PretrainedModel:
    """Read the `config.json` of a folder.

    Raises:
        ValueError: If it cannot be read, or the model is none of ours.
    """
    path, file = Path(folder), Path(folder) / "config.json"
    try:
        if not path.is_dir():
            raise ValueError(f"{path}: no such folder. Fetch it, or name another Hugging Face folder.")
        if not file.exists():
            raise ValueError(f"{file}: no such file. Name a Hugging Face folder.")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}). Name another Hugging Face folder.") from error
    values = read_object(file, ". Name a Hugging Face folder.")
    config = from_hugging_face(values, str(file))
    ignored = unused_keys(values)
    notes = [f"{file}: not used here: {', '.join(ignored)}."] if ignored else []
    return PretrainedModel(path, str(values["model_type"]), config, tuple(notes))


def complete_from_folder(section: Mapping[str, Any], recorded: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A model section with a `from`, and under what it sets itself every field of that folder; it starts from the folder's weights.

    `initialize` may say otherwise: with `"method": "scratch"` only the shape is the folder's, and `depth` starts from its layers.

    Args:
        section: The section, with a `from`.
        recorded: The completed section that the run was started with, which serves where the folder is there no longer.

    Raises:
        ValueError: If the folder cannot be read.
    """
    folder = section[FROM]
    if not isinstance(folder, str):
        raise ValueError(f"model.{FROM} = {json.dumps(folder)}; it must be the path of a Hugging Face folder, as a string.")
    try:
        fields = asdict(read_pretrained(folder).config)
    except ValueError as error:
        if recorded is None or recorded.get(FROM) != folder:
            raise ValueError(f"model.{FROM}: {error}") from error
        fields = dict(recorded)
    if "dropout" in section:
        fields.pop("attention_dropout", None)  # as everywhere, it is `dropout` where only that is set
    given = section.get("initialize", {})
    scratch = isinstance(given, dict) and given.get("method") == "scratch"
    start = given if scratch or not isinstance(given, dict) else {"method": "folder", "folder": folder, **given}
    return {**fields, **section, "initialize": start}


def check_pretrained(config: ModelConfig) -> PretrainedModel | None:
    """The folder that a model starts from, if there is one, after a look at everything but its tensors.

    Raises:
        ValueError: Names what does not fit, or cannot be read.
    """
    if config.initialize.folder is None:
        return None
    pretrained = read_pretrained(config.initialize.folder)
    _check_same_model(config, pretrained)
    starting_layers(config, pretrained)
    return pretrained


def starting_layers(config: ModelConfig, pretrained: PretrainedModel) -> tuple[int, ...]:
    """For each layer of the model, the layer of the folder that it starts from.

    Raises:
        ValueError: If the numbers of layers do not fit together.
    """
    held, wanted = pretrained.config.num_layers, config.num_layers
    if config.initialize.method == "folder" and held != wanted:
        raise ValueError(
            f'{pretrained.path}: has {held} layers and model.num_layers = {wanted}. Set model.initialize.method = "depth" to '
            f"start from copies of them, or model.num_layers = {held}."
        )
    layers = config.initialize.layers or default_starting_layers(held, wanted)
    outside = [layer for layer in layers if not 0 <= layer < held]
    if outside:
        raise ValueError(f"{pretrained.path}: has layers 0 to {held - 1}, and model.initialize.layers names {outside[0]}. Name others.")
    return layers


def default_starting_layers(source: int, target: int) -> tuple[int, ...]:
    """Which source layer each target layer starts from: the first half from the front, the second half from the back.

    12 -> 16 takes the first 8 and the last 8, 12 -> 10 the first 5 and the last 5. Beyond twice the depth, each layer is repeated in place.
    """
    front = (target + 1) // 2
    if front > source:
        return tuple(layer * source // target for layer in range(target))
    return (*range(front), *range(source - (target - front), source))


def _check_same_model(config: ModelConfig, pretrained: PretrainedModel) -> None:
    """Refuse a folder whose weights mean something else."""
    where, theirs = pretrained.path / "config.json", pretrained.config
    fields = [*SHARED_FIELDS, "max_seq_length" if config.position == "learned" else "rotary_base"]
    fields += ["vocab_size"] if config.initialize.embeddings else []
    differing = [name for name in fields if getattr(theirs, name) != getattr(config, name)]
    if pretrained.format != config.family and {"norm", "position", "activation"} & set(differing):
        raise ValueError(
            f"{where}: its {pretrained.format} model ({_kind(theirs)}) has not the layers of "
            f'model.family = "{config.family}" ({_kind(config)}). Use a folder of that family, or change model.family.'
        )
    if differing:
        pairs = ", ".join(f"{name} = {getattr(theirs, name)} (model.{name} = {getattr(config, name)})" for name in differing)
        vocabulary = differing == ["vocab_size"]
        other = "set model.initialize.embeddings = false to draw a new embedding and head" if vocabulary else "use another folder"
        raise ValueError(f"{where}: {pairs}. Give the model the folder's values, or {other}.")
    if config.initialize.embeddings and config.tie_embeddings and not theirs.tie_embeddings:
        raise ValueError(f'{where}: "lm_head.weight" is a matrix of its own and model.tie_embeddings is true. Set it to false.')


def _kind(config: ModelConfig) -> str:
    return f"{config.norm}, {config.position} positions, {config.activation}"
