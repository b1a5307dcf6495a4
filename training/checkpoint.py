"""Save, verify, publish, resume, prune.

DeepSpeed writes the tensors; what it does not do is done here. A checkpoint is a folder that becomes real in this order: all ranks
write, all ranks agree that nobody failed, files are synced and hashed, rank 0 writes the manifest, and only then `latest` is
replaced in one step. A folder without a manifest is a save that was interrupted. On resume the newest checkpoint whose files
match their hashes is taken, so a torn or damaged one costs an interval, not the run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed.accelerator import get_accelerator

from training.distributed import Ranks, quiet
from training.engine import SAVED_PREFIX

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
LATEST = "latest"
UNIVERSAL_INFO = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}


def tag_of(step: int) -> str:
    """Tags sort by name as by step."""
    return f"step{step:08d}"


def save_checkpoint(engine: Any, ranks: Ranks, folder: Path, facts: Mapping[str, Any]) -> bool:
    """Write the engine's state at its current step and publish it.

    Args:
        engine: The pipeline engine.
        ranks: This rank's place.
        folder: `runs/<name>/checkpoints`, on a path all hosts share.
        facts: What the manifest should also say (metrics); the same on every rank.

    Returns:
        False, on all ranks alike, if any rank failed; the half-written folder is then removed and the checkpoints before stay.
    """
    tag = tag_of(engine.global_steps)
    target = folder / tag
    if ranks.is_first:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
    torch.distributed.barrier()
    error = _write(engine, ranks, folder, tag)
    problems = _gather(error)
    hashes: list[dict[str, Any]] = []
    if not any(problems):
        hashes, problems = _hash_share(target, ranks)
    if ranks.is_first:
        if not any(problems):
            problems = [_publish(folder, tag, engine, ranks, _merge(hashes), facts)]
        for rank, problem in enumerate(problems):
            if problem:
                log.error("checkpoint %s was not saved: rank %d: %s. The checkpoints before it are untouched.", tag, rank, problem)
        if any(problems):
            shutil.rmtree(target, ignore_errors=True)
    return not any(_gather("failed" if ranks.is_first and any(problems) else None))


def _write(engine: Any, ranks: Ranks, folder: Path, tag: str) -> str | None:
    """One rank's exception must not leave the others in save_checkpoint's last barrier, so it is joined here."""
    try:
        torch.save(_random_state(), folder / tag / f"random_state_rank{ranks.world.rank:05d}.pt")
        engine.save_checkpoint(str(folder), tag=tag, client_state=dict(UNIVERSAL_INFO), save_latest=False)
    except (OSError, RuntimeError) as error:
        torch.distributed.barrier()
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    return None


def _gather(value: Any) -> list[Any]:
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def _hash_share(target: Path, ranks: Ranks) -> tuple[list[dict[str, Any]], list[str | None]]:
    """Every rank syncs and hashes its share of the files, as they can be read back, not as they were meant."""
    share: dict[str, Any] = {}
    error = None
    try:
        for path in _files(target)[ranks.world.rank :: ranks.world.size]:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            share[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    except OSError as caught:
        error = str(caught)
    answers = _gather((share, error))
    return [answer[0] for answer in answers], [answer[1] for answer in answers]


def _merge(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in parts:
        merged.update(part)
    return dict(sorted(merged.items()))


def _files(target: Path) -> list[Path]:
    return sorted(path for path in target.iterdir() if path.is_file() and path.name != MANIFEST)


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _publish(folder: Path, tag: str, engine: Any, ranks: Ranks, files: Mapping[str, Any], facts: Mapping[str, Any]) -> str | None:
    manifest = {
        "tag": tag,
        "step": engine.global_steps,
        "consumed_samples": engine.global_samples,
        "topology": {"pipe": ranks.stages, "data": ranks.replicas},
        "partition": list(engine.module.parts),
        **facts,
        "files": files,
    }
    try:
        replace(folder / tag / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False))
        replace(folder / LATEST, tag)
    except OSError as error:
        return str(error)
    return None


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


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` complete checkpoints, and what interrupted saves and changes of topology left.

    On rank 0, after publishing.
    """
    kept = {LATEST, *complete_tags(folder)[:keep]}
    for path in folder.iterdir():
        if path.is_dir() and path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)
        elif path.name not in kept:
            path.unlink(missing_ok=True)  # DeepSpeed's conversion scripts, which cannot read pipeline checkpoints.


def complete_tags(folder: Path) -> list[str]:
    """Tags with a manifest, newest first. Files are not verified."""
    if not folder.is_dir():
        return []
    return sorted((path.parent.name for path in folder.glob(f"step*/{MANIFEST}")), reverse=True)


def read_manifest(folder: Path, tag: str) -> dict[str, Any]:
    """The manifest of a complete checkpoint."""
    manifest: dict[str, Any] = json.loads((folder / tag / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def saved_precision(manifest: Mapping[str, Any]) -> str:
    """What a checkpoint's run computed in, "bf16" or "fp32"; older manifests only show it in the names of files."""
    in_names = "bf16" if any(name.startswith("bf16_zero_") for name in manifest["files"]) else "fp32"
    said: str = manifest.get("precision", in_names)
    return said


def choose_checkpoint(folder: Path, ranks: Ranks) -> dict[str, Any] | None:
    """The manifest of the newest checkpoint whose files are all as they were written, the same on every rank; None without any.

    Raises:
        ValueError: If there are complete checkpoints but none of them is undamaged.
    """
    tags = _gather(complete_tags(folder) if ranks.is_first else None)[0]
    for tag in tags:
        damage = [problem for problems in _gather(_damage(folder / tag, ranks)) for problem in problems]
        if not damage:
            return read_manifest(folder, tag)
        if ranks.is_first:
            log.warning("checkpoint %s is damaged (%s); falling back to the one before.", tag, "; ".join(damage[:3]))
    if tags:
        raise ValueError(
            f"{folder}: none of the checkpoints {', '.join(tags)} is undamaged. Restore one, or remove the folder to start anew."
        )
    return None


def _damage(target: Path, ranks: Ranks) -> list[str]:
    try:
        files = read_manifest(target.parent, target.name)["files"]
    except (OSError, ValueError, KeyError) as error:
        return [f"{MANIFEST}: {error}"]
    problems = []
    for name in sorted(files)[ranks.world.rank :: ranks.world.size]:
        path = target / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != files[name]["bytes"]:
            problems.append(f"{name} has {path.stat().st_size} bytes instead of {files[name]['bytes']}")
        elif sha256(path) != files[name]["sha256"]:
            problems.append(f"{name} does not match its SHA-256")
    return problems


def load_checkpoint(engine: Any, ranks: Ranks, folder: Path, tag: str, *, universal: bool) -> None:
    """Restore the engine, and this rank's random state if the same topology saved it.

    Raises:
        RuntimeError: On all ranks, if any of them could not load, so that nobody waits for it.
    """
    error = None
    try:
        # Runs in fp32 were once saved under another name.
        engine.checkpoint_prefix = SAVED_PREFIX if any((folder / tag).glob(f"{SAVED_PREFIX}zero_*")) else ""
        with quiet():
            loaded, _ = engine.load_checkpoint(str(folder), tag=tag)
        # Weights are the masters' rounding to the precision of now, which need not be that of the files.
        engine.optimizer.update_lp_params()
        if loaded is None:
            error = "DeepSpeed found nothing to load"
        elif not universal:
            _restore_random_state(torch.load(folder / tag / f"random_state_rank{ranks.world.rank:05d}.pt", weights_only=False))
    except (OSError, RuntimeError, ValueError, KeyError, AssertionError) as caught:
        error = f"{type(caught).__name__}: {caught}"
    finally:
        engine.checkpoint_prefix = SAVED_PREFIX
    problems = [f"rank {rank}: {problem}" for rank, problem in enumerate(_gather(error)) if problem]
    if problems:
        raise RuntimeError(f"{folder / tag}: " + "; ".join(problems[:3]))


def _random_state() -> dict[str, Any]:
    accelerator = get_accelerator()
    device = accelerator.get_rng_state() if accelerator.device_name() != "cpu" else None
    return {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": np.random.get_state(), "device": device}


def _restore_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    if state["device"] is not None:
        get_accelerator().set_rng_state(state["device"])
