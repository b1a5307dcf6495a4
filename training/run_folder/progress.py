"""How far the run in a folder has come: its checkpoints, and the results of a finished one. No torch here."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ds_configs.atomic_files import object_or_nothing, write_json
from training.checkpoints.find_and_verify import CheckpointError, open_checkpoint, published, some_of, step_of, tag_of, verify
from training.config import RunConfig
from training.run_folder.lock import NAME as LOCK

# Put into a run's folder, it asks for what SIGTERM does.
STOP_FILE = "STOP"


def last_step_of(config: RunConfig, samples_per_epoch: int | None) -> int | None:
    """The run's last step (`RunConfig.last_step`). Steps whose batch was another count with the samples that they read."""
    planned = config.last_step(samples_per_epoch)
    if planned is None or config.training.steps is not None:
        return planned
    for folder in published(config.folder):
        checkpoint, _ = verify(folder, slice(0))  # What is damaged is said when one is chosen.
        if checkpoint and "consumed_samples" in checkpoint.manifest:
            worth = checkpoint.manifest["consumed_samples"] // config.batch.train_batch_size
            return max(checkpoint.step, planned + checkpoint.step - worth)
    return planned


def newest_step(folder: Path) -> int:
    """The step of a run's newest checkpoint; 0 without one."""
    return next((step for checkpoint in published(folder) if (step := step_of(checkpoint.name))), 0)


def finished_step(config: RunConfig, last_step: int | None) -> int | None:
    """The newest checkpoint's step if it is the last one, or None.

    Raises:
        CheckpointError: If that one is damaged, as far as sizes show.
        ValueError: If it cannot be read.
    """
    step = newest_step(config.folder)
    if last_step is None or step < last_step:
        return None
    if damage := verify(config.folder / "checkpoints" / tag_of(step), hashed=False)[1]:
        raise CheckpointError(
            f"{config.folder} is finished, but {some_of(damage, 'files')}. If all hosts see it so, remove that checkpoint: the same "
            "command then goes on from the one before it, or starts anew without one."
        )
    return step


def write_results(config: RunConfig, step: int, results: Mapping[str, float]) -> None:
    """Write `results.json`: the last figures of a finished run."""
    write_json(config.folder / "results.json", {"step": step, **results})


def read_results(config: RunConfig) -> dict[str, Any]:
    """The last figures of a finished run; those of its newest checkpoint if it was killed before `results.json` was whole.

    Raises:
        CheckpointError: If the newest checkpoint cannot be read.
    """
    folders = published(config.folder)
    newest = open_checkpoint(folders[0]).manifest if folders else {}
    results = object_or_nothing(config.folder / "results.json")
    if results.get("step") != newest.get("step"):
        return {"step": newest["step"], **newest.get("metrics", {})}
    return results


def remove_unused(folder: Path, written: str = LOCK) -> None:
    """Take away the folder of a run that was refused before anything but its lock, or what else is named, was written there."""
    if folder.is_dir() and [path.name for path in folder.iterdir()] == [written]:
        shutil.rmtree(folder)
