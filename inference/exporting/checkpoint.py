"""Find the checkpoint of a run to read, and make sure that its files are the ones that were saved.

A checkpoint is a folder `runs/<name>/checkpoints/<tag>/` with a `manifest.json`, which is written last: a folder without one is a save
that was interrupted. What the files hold is `masters.py`. Torch is not needed here.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ds_configs.checkpoints import MANIFEST, UNIVERSAL, complete_tags, step_of, tag_of
from ds_configs.files import sha256_of

log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A run or a checkpoint cannot be read; the message is one line that says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """One complete save; `fingerprint` changes with anything in it."""

    folder: Path
    step: int
    fingerprint: str
    manifest: Mapping[str, Any] = field(repr=False)

    @property
    def tag(self) -> str:
        """The name of its folder."""
        return self.folder.name


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the manifest of a checkpoint folder; its files are not looked at.

    Raises:
        CheckpointError: If there is no manifest, or it is not one.
    """
    if is_universal(folder):
        return _open_universal(folder)
    try:
        raw = (folder / MANIFEST).read_bytes()
        manifest = json.loads(raw)
        step, files = manifest["step"], manifest["files"]
        well_formed = isinstance(step, int) and all({"bytes", "sha256"} <= facts.keys() for facts in files.values())
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: has no {MANIFEST}, so its save was never finished. Use another checkpoint.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        well_formed = False
    if not well_formed:
        raise CheckpointError(f"{folder / MANIFEST}: is not the manifest of a checkpoint. Use another checkpoint.")
    return Checkpoint(folder, step, hashlib.sha256(raw).hexdigest(), manifest)


def is_universal(folder: Path) -> bool:
    """Whether this is a checkpoint in DeepSpeed's universal form, one folder per weight."""
    return _universal_step(folder) is not None and next(folder.glob("zero/*/fp32.pt"), None) is not None


def _universal_step(folder: Path) -> int | None:
    prefix, universal, tag = folder.resolve().name.partition(UNIVERSAL)
    return step_of(tag) if universal and not prefix else None


def _open_universal(folder: Path) -> Checkpoint:
    """It has no manifest: its files are taken as they are, its facts are those of the checkpoint that it was made of."""
    step = _universal_step(folder)
    assert step is not None, "asked before"
    digest = hashlib.sha256()
    for path in sorted(folder.glob("zero/*/fp32.pt")):
        with path.open("rb") as file:
            digest.update(path.parent.name.encode() + hashlib.file_digest(file, "sha256").digest())
    try:
        manifest = json.loads((folder.parent / tag_of(step) / MANIFEST).read_text(encoding="utf-8"))
        facts = {key: manifest[key] for key in ("metrics", "consumed_samples") if key in manifest}
    except (OSError, ValueError, TypeError):
        facts = {}
    return Checkpoint(folder, step, digest.hexdigest(), {"files": {}, **facts})


def list_checkpoints(run: Path) -> list[Checkpoint]:
    """The complete checkpoints of a run folder, newest first; their files are not looked at. A copy under a name of its own is none.

    Raises:
        CheckpointError: If there is none.
    """
    found = []
    for tag in complete_tags(run / "checkpoints"):
        try:
            found.append(open_checkpoint(run / "checkpoints" / tag))
        except CheckpointError as error:
            log.warning("%s", error)
    if not found:
        raise CheckpointError(f"{run}: has no finished checkpoint yet. Train on, or wait for the run's first save ({_interval(run)}).")
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def choose(run: Path) -> Checkpoint:
    """The newest checkpoint of a run folder whose files are all as they were saved.

    Raises:
        CheckpointError: If there is no checkpoint, or all are damaged.
    """
    damages = []
    for checkpoint in list_checkpoints(run):
        damage = find_damage(checkpoint)
        if damage is None:
            return checkpoint
        damages.append(damage)
        log.warning("%s; trying the checkpoint before it.", damage)
    raise CheckpointError(f"{damages[0]}, and no other checkpoint of {run} is good. Resume the run from a copy, or train it again.")


def find_damage(checkpoint: Checkpoint) -> str | None:
    """What is wrong with the files of a checkpoint, compared with sizes and SHA-256 in its manifest; None if nothing is."""
    files = checkpoint.manifest["files"]
    # Sizes first: they cost nothing, and a torn save usually shows there.
    for name, facts in files.items():
        path = checkpoint.folder / name
        if not path.is_file():
            return f"{path}: is missing, although the checkpoint's manifest lists it"
        if path.stat().st_size != facts["bytes"]:
            return f"{path}: has {path.stat().st_size} bytes where the manifest says {facts['bytes']}"
    for name, facts in files.items():
        if sha256_of(checkpoint.folder / name) != facts["sha256"]:
            return f"{checkpoint.folder / name}: is damaged, its SHA-256 is not the one in the manifest"
    return None


def _interval(run: Path) -> str:
    """When the run saves, for the message to someone who has to wait."""
    try:
        steps = json.loads((run / "config.json").read_text(encoding="utf-8"))["training"]["save_interval_steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return "training.save_interval_steps"
    return f"every {steps} steps"
