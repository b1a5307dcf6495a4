"""Find the newest good checkpoint of a run, and verify files against the manifest: a torn file or a flipped bit is noticed here.

A checkpoint is a folder `runs/<name>/checkpoints/step00000100/` with a `manifest.json`, which is written last: a folder without one is a
save that was interrupted. `save.py` writes them; whoever reads a run asks here: training, inference and `data.inspect`. No torch here.

What cannot be read is not damaged: a network file system may fail for a moment, and the next save would remove what was passed over.
"""

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ds_configs.atomic_files import object_or_nothing, wrong_with

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
LATEST = "latest"
PARTITION_FILE = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
"""The optimizer's share of one replica (first number) of one stage (second)."""
NO_DAMAGE = "So no older checkpoint takes its place. Try again when it can be read, or move its folder elsewhere to do without it."
READ_AGAIN_SECONDS = (1.0, 3.0)


class CheckpointError(ValueError):
    """A run or a checkpoint is not what it should be; the message is one line that says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """One complete save; `fingerprint` changes with anything in it."""

    folder: Path
    step: int
    fingerprint: str
    manifest: Mapping[str, Any] = field(repr=False)

    @property
    def precision(self) -> str:
        """What its run computed in, "bf16" or "fp32"; manifests of version 0.1 only show it in the names of files."""
        in_names = "bf16" if any(name.startswith("bf16_zero_") for name in self.manifest["files"]) else "fp32"
        said: str = self.manifest.get("precision", in_names)
        return said


def tag_of(step: int) -> str:
    """The folder's name of the checkpoint of a step."""
    return f"step{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint's folder; None for a name that is not one of ours, such as a copy "step00000100_best"."""
    found = re.fullmatch(r"step(\d{8,})", name)
    return int(found.group(1)) if found else None


def published(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, newest first. Neither manifests nor files are looked at.

    Raises:
        OSError: If their names cannot be read.
    """
    names = os.listdir(run / "checkpoints") if (run / "checkpoints").is_dir() else []
    folders = (run / "checkpoints" / tag_of(step) for step in sorted(filter(None, map(step_of, names)), reverse=True))
    return [folder for folder in folders if _may_be_there(folder / MANIFEST)]


def _may_be_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the manifest of a checkpoint's folder; its files are not looked at.

    Raises:
        CheckpointError: If there is no manifest, or it is not one.
        OSError: If it cannot be read.
    """
    try:
        raw = (folder / MANIFEST).read_bytes()
        manifest = json.loads(raw)
        step, files = manifest["step"], manifest["files"]
        well_formed = isinstance(step, int) and all({"bytes", "sha256"} <= facts.keys() for facts in files.values())
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: has no {MANIFEST}, so its save was never finished. Use another checkpoint.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        well_formed = False
    if not well_formed:
        raise CheckpointError(f"{folder / MANIFEST}: is not the manifest of a checkpoint. Use another checkpoint.")
    return Checkpoint(folder, step, hashlib.sha256(raw).hexdigest(), manifest)


def verify(folder: Path, share: slice = slice(None), *, hashed: bool = True) -> tuple[Checkpoint | None, list[str]]:
    """Read a checkpoint and compare its files with the sizes, and if they are `hashed` the SHA-256, in its manifest.

    Args:
        folder: Of the checkpoint.
        share: Which of the files, in the order of their names; `slice(0)` reads the manifest only.
        hashed: Sizes cost nothing, and a torn save usually shows there.

    Returns:
        The checkpoint, None if its manifest is not there or is none, and what is wrong with it, one line each.

    Raises:
        ValueError: If something cannot be read for some seconds.
    """
    try:
        checkpoint = _patiently(open_checkpoint, folder)
    except CheckpointError as error:
        return None, [str(error).removesuffix(" Use another checkpoint.").removesuffix(".")]
    files = sorted(checkpoint.manifest["files"].items())[share]
    return checkpoint, [wrong for name, facts in files if (wrong := _patiently(wrong_with, folder / name, facts, hashed=hashed))]


def _patiently(read: Callable[..., Any], path: Path, *arguments: Any, **options: Any) -> Any:
    """Read, and where that fails read again a little later. What ends it is no OSError: a preparation takes those for its own."""
    for seconds in (*READ_AGAIN_SECONDS, 0.0):
        try:
            return read(path, *arguments, **options)
        except OSError as error:
            failed = error
            time.sleep(seconds)
    raise ValueError(f"{failed.filename or path} cannot be read ({failed.strerror}). {NO_DAMAGE}") from failed


def first_good(run: Path, verified: Iterable[tuple[Checkpoint | None, list[str]]], warn: Callable[[str], None] = log.warning) -> Checkpoint:
    """The first checkpoint of a run with which nothing is wrong; what is wrong with those before it is said.

    Args:
        run: The folder of the run.
        verified: What `verify` gives for each, newest first, at least one; no more are looked at than it takes.
        warn: Takes a line for each that is passed over.

    Raises:
        CheckpointError: If something is wrong with each of them.
    """
    damages = []
    for checkpoint, damage in verified:
        if checkpoint and not damage:
            return checkpoint
        damages.append(some_of(damage, "files"))
        warn(f"{damages[-1]}; trying the checkpoint before it.")
    raise CheckpointError(
        f"{damages[0]}, and no other checkpoint of {run} is good. Put one back from a copy, or remove {run} to start anew."
    )


def newest_good(run: Path, share: slice = slice(None)) -> Checkpoint:
    """The newest checkpoint of a run whose files (or a share of them, see `verify`) are all as they were saved.

    Raises:
        CheckpointError: If there is no checkpoint yet, or all are damaged.
        ValueError: If one that may be good cannot be read.
    """
    folders = published(run)
    if not folders:
        raise CheckpointError(f"{run}: has no finished checkpoint yet. Train on, or wait for the run's first save ({_interval(run)}).")
    return first_good(run, (verify(folder, share) for folder in folders))


def some_of(problems: Sequence[str], what: str) -> str:
    """Three of them, for a line, and how many more `what` have one."""
    return "; ".join(problems[:3]) + (f" (and {len(problems) - 3} more {what})" if len(problems) > 3 else "")


def _interval(run: Path) -> str:
    """When the run saves, for the message to someone who has to wait."""
    training = object_or_nothing(run / "config.json").get("training")
    steps = training.get("save_interval_steps") if isinstance(training, dict) else None
    return f"every {steps} steps" if steps else "training.save_interval_steps"
