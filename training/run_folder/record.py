"""The run's folder: what it says of itself, and whether a start may go on with what it finds there. No torch here."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ds_configs import ConfigError
from ds_configs.checkpoints import MANIFEST, complete_tags, step_of
from model.flops import count_parameters
from training.config import RunConfig
from training.run_folder.lock import NAME as LOCK
from training.run_folder.provenance import changed_data

PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy")
# At most: fp32 weights, and per parameter an fp32 master and Adam's two moments.
CHECKPOINT_BYTES_PER_PARAMETER = 16


def check_folder(config: RunConfig) -> None:
    """Refuse to go on with another model, other data or another seed, and to start what the disk cannot hold.

    Raises:
        ConfigError: With what differs, or what is free and what is needed.
    """
    previous = read_config(config.folder)
    if previous is not None and has_checkpoint(config.folder):
        problems = []
        model = previous.get("model", {})
        if model != config.values["model"]:
            problems.append(
                f"{config.path}: model differs from the run in {config.folder} ({_difference(model, config.values['model'], 'model')}). "
                "Use another run.name, or remove that folder to start anew."
            )
        problems += changed_data(config, previous)
        before, now = (values.get("optimizer", {}).get("type") for values in (previous, config.values))
        if before != now:
            problems.append(
                f"{config.path}: optimizer.type = {now}, but the run in {config.folder} has the state of {before}, which {now} "
                "cannot use. Use another run.name."
            )
        if previous.get("run", {}).get("seed") != config.values["run"].get("seed"):
            problems.append(
                f"{config.path}: run.seed differs from the run in {config.folder}: the order of the data would jump. Use another run.name."
            )
        if problems:
            raise ConfigError(problems)
    folder = config.folder
    # The folder itself is made once nothing is left to refuse.
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
        free = shutil.disk_usage(existing).free
    except OSError as error:
        raise ConfigError(
            [f"{config.path}: the run's folder {folder} cannot be written ({error.strerror}). Set run.directory to one that can."]
        ) from error
    needed = count_parameters(config.model) * CHECKPOINT_BYTES_PER_PARAMETER
    if free < 2 * needed:
        raise ConfigError(
            [
                f"{folder}: {free / 1e9:.1f} GB free, but a checkpoint of this model takes {needed / 1e9:.1f} GB "
                "and saving needs room for two. Free some space, or set run.directory to another disk."
            ]
        )


def remove_unused(folder: Path) -> None:
    """Take away the folder of a run that was refused before it wrote anything but its lock."""
    if folder.is_dir() and [path.name for path in folder.iterdir()] == [LOCK]:
        (folder / LOCK).unlink()
        folder.rmdir()


def _difference(old: Any, new: Any, name: str) -> str:
    """The first key at which two sections part, as "model.num_layers was 4, is 6"."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                return _difference(old.get(key), new.get(key), f"{name}.{key}")
    return f"{name} was {json.dumps(old, ensure_ascii=False)}, is {json.dumps(new, ensure_ascii=False)}"


def read_config(folder: Path) -> dict[str, Any] | None:
    """What a run's config.json says, or None for a new run."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError([f"{path}: {error}. It was damaged; remove it to have it written again."]) from error
    return read


def has_checkpoint(folder: Path) -> bool:
    """True if a complete checkpoint is there (not verified)."""
    return bool(complete_tags(folder / "checkpoints"))


def finished_step(config: RunConfig, last_step: int | None) -> int | None:
    """The newest checkpoint's step if it is the last one, or None."""
    tags = complete_tags(config.folder / "checkpoints")
    step = step_of(tags[0]) if tags else None
    return step if step is not None and last_step is not None and step >= last_step else None


def write_config(config: RunConfig, overrides: Sequence[str], facts: Mapping[str, Any]) -> None:
    """Write `config.json`: the resolved configuration, itself a config, and where it came from; `facts` found out at the start besides."""
    # Overrides to run.directory travel with the values, so the file starts the same run again from the same folder.
    record = {
        **config.values,
        "provenance": {
            "config": str(config.path),
            "overrides": list(overrides),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "python": sys.version.split()[0],
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "git_commit": _git_commit(),
            **facts,
        },
    }
    replace(config.folder / "config.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def write_results(config: RunConfig, step: int, results: Mapping[str, float]) -> None:
    """Write `results.json`: the last figures of a finished run."""
    replace(config.folder / "results.json", strict_json({"step": step, **results}, indent=1) + "\n")


def read_results(config: RunConfig) -> dict[str, Any]:
    """The last figures of a finished run; those of its newest checkpoint if it was killed between that and `results.json`."""
    tags = complete_tags(config.folder / "checkpoints")
    newest = json.loads((config.folder / "checkpoints" / tags[0] / MANIFEST).read_text(encoding="utf-8")) if tags else {}
    path = config.folder / "results.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if results.get("step") != newest.get("step"):
        return {"step": newest["step"], **newest.get("metrics", {})}
    return results


def _git_commit() -> str | None:
    root = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=root, capture_output=True, text=True, check=False
        )
    except OSError:
        return None  # No git on a compute node: the rest of the record stands.
    return done.stdout.strip() or None


def strict_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: a number that is not finite, which JSON does not have, becomes null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def replace(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
