"""What a path on the command line is: a run, one checkpoint of a run, or a Hugging Face folder. Torch is not needed here."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ds_configs
from ds_configs.atomic_files import object_or_nothing, read_object
from ds_configs.errors import first_line, shown
from model.config import ModelConfig
from model.families import FAMILIES, preset
from training.checkpoints.find_and_verify import MANIFEST, CheckpointError, published


@dataclass(frozen=True)
class ModelPath:
    """Where a model is. `run` is the run folder, which for a Hugging Face folder is None."""

    kind: Literal["run", "checkpoint", "folder"]
    path: Path
    run: Path | None


def find_model(path: Path) -> ModelPath:
    """Tell what lies at a path; `runs/<name>@<tag>` is the checkpoint with that tag of a run.

    Raises:
        CheckpointError: If there is nothing, or nothing with a model in it.
        ValueError: If its config.json cannot be read.
    """
    run_name, at, tag = path.name.rpartition("@")
    if at and not path.exists():
        return _named_checkpoint(path.with_name(run_name), tag)
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder. {_known_runs(path)}")
    if path.is_file():
        wanted = f"runs/{path.stem} for the configuration {path.name}" if path.suffix == ".json" else "or a Hugging Face folder"
        raise CheckpointError(f"{path}: is a file. Name the folder of the run instead, {wanted}.")
    if (path / MANIFEST).is_file():
        return ModelPath("checkpoint", path, path.resolve().parent.parent)
    config = read_object(path / "config.json")
    if "model_type" in config:
        return ModelPath("folder", path, None)
    if isinstance(config.get("model"), dict) or (path / "checkpoints").is_dir():
        return ModelPath("run", path, path)
    raise CheckpointError(f"{path}: is neither a run (config.json with a model section) nor a Hugging Face folder. {_known_runs(path)}")


def _named_checkpoint(run: Path, tag: str) -> ModelPath:
    if not (run / "config.json").is_file():
        raise CheckpointError(f"{run}: no such run. {_known_runs(run)}")
    folder = run / "checkpoints" / tag
    if tag and (folder / MANIFEST).is_file():
        return ModelPath("checkpoint", folder, run)
    found = [folder.name for folder in published(run)]
    raise CheckpointError(
        f"{run}: has no finished checkpoint {tag!r}. " + (f"Name one of {', '.join(sorted(found))}." if found else "It has none yet.")
    )


def load_run_config(run: Path) -> tuple[ds_configs.LoadedConfig, ModelConfig]:
    """The resolved configuration that training left in a run folder, and its model.

    Raises:
        CheckpointError: If the folder has no configuration.
        ds_configs.ConfigError: If it is not one.
    """
    path = run / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{run}: has no config.json, so the shape of its model is unknown. Name the folder of a run.")
    config = ds_configs.load(path)
    return config, ds_configs.build_section(ModelConfig, preset(config.values.get("model", {})), "model", str(path))


def max_positions(folder: Path) -> int:
    """How many tokens the model of a Hugging Face folder can hold, the prompt's included.

    Raises:
        CheckpointError: If the folder says something else than a number.
    """
    config = object_or_nothing(folder / "config.json")
    positions = config.get("max_position_embeddings") or config.get("n_positions") or sys.maxsize
    if not isinstance(positions, int) or positions < 1:
        raise CheckpointError(f"{folder / 'config.json'}: its number of positions is {shown(positions)}. Export it again.")
    return positions


def attention_window(folder: Path) -> int:
    """How many tokens back every layer of the model of a Hugging Face folder looks, fewer than there may be if it has sliding windows.

    Raises:
        CheckpointError: If its configuration is not one that transformers takes.
    """
    config = object_or_nothing(folder / "config.json")
    if config.get("model_type") in FAMILIES and config.get("sliding_window") is None:
        return sys.maxsize  # These have none, and transformers, which knows about all others, takes seconds to import.
    from transformers import AutoConfig, DynamicCache

    with loading(folder):
        known = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        layers = DynamicCache(config=known).layers
    windows = [layer.sliding_window for layer in layers if getattr(layer, "is_sliding", False)]
    if "local" in getattr(known, "attention_layers", ()):  # GPT-Neo's, of which the library's cache knows nothing.
        windows.append(known.window_size)
    return min(windows, default=sys.maxsize)


@contextlib.contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Around whatever transformers reads from a folder: its errors, of any type, are told as a `CheckpointError`."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{folder}: does not load as a causal language model ({first_line(error)}). Export it again.") from error


def token_ids(folder: Path) -> dict[str, Any]:
    """The ids of the special tokens that a Hugging Face folder names for generation, None for one that it does not name.

    Raises:
        ValueError: If a file that may name them cannot be read.
    """
    said = {**read_object(folder / "config.json"), **read_object(folder / "generation_config.json")}
    return {name: said.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _known_runs(path: Path) -> str:
    """The runs in the folder where one was looked for, or in `runs`."""
    for folder in (path.parent, Path("runs")):
        runs = sorted(
            config.parent.name for config in folder.glob("*/config.json") if isinstance(object_or_nothing(config).get("model"), dict)
        )
        if runs:
            return f"Runs in {folder}: {', '.join(runs)}."
    return "Train one with ./run_pretrain.sh, which leaves it in runs/<name>."
