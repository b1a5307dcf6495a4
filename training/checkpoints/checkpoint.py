"""Save, verify, publish, resume, prune.

DeepSpeed writes the tensors; what it does not do is done here. A checkpoint is a folder that becomes real in this order: all ranks
write, all ranks agree that nobody failed, files are synced and hashed, rank 0 writes the manifest, and only then `latest` is
replaced in one step. A folder without a manifest is a save that was interrupted. On resume the newest checkpoint whose files
match their hashes is taken, so a torn or damaged one costs an interval, not the run.

No rank may leave a save on its own: the others would wait for it in a collective. So every write here ends in an exchange of
errors, and DeepSpeed's writes note theirs and go on (`_note_errors`).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ds_configs.checkpoints import MANIFEST, UNIVERSAL, complete_tags, step_of, tag_of
from ds_configs.files import sha256_of
from training.checkpoints import random_state
from training.launch.process_group import Ranks, quiet
from training.run.engine import SAVED_PREFIX
from training.run_folder.record import replace, strict_json

log = logging.getLogger(__name__)

LATEST = "latest"
UNIVERSAL_INFO = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
# Scripts DeepSpeed used to leave beside its checkpoints; they cannot read a pipeline's.
SCRIPTS = ("zero_to_fp32.py", "zero_to_torch.py")


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
    hashes: list[dict[str, Any]] = []
    # The small writes come first: a rank that cannot make them has not gone into DeepSpeed's collectives yet.
    problems = _gather(_make_folder(target) if ranks.is_first else None)
    if not any(problems):
        problems = _gather(_save_random_state(target, ranks))
    if not any(problems):
        problems = _gather(_write(engine, folder, tag))
    if not any(problems):
        hashes, problems = _hash_share(target, ranks)
    if not any(problems):
        problems = _gather(_publish(folder, tag, engine, ranks, _merge(hashes), facts) if ranks.is_first else None)
    if not any(problems):
        return True
    if ranks.is_first:
        failed = [f"rank {rank}: {problem}" for rank, problem in enumerate(problems) if problem]
        more = f" (and {len(failed) - 3} more ranks)" if len(failed) > 3 else ""
        log.error("checkpoint %s was not saved: %s%s. The checkpoints before it are untouched.", tag, "; ".join(failed[:3]), more)
        _remove(target)
    return False


def _make_folder(target: Path) -> str | None:
    """An empty folder: what an interrupted save left there is removed."""
    try:
        if target.exists():
            shutil.rmtree(target)
        target.mkdir(parents=True)
    except OSError as error:
        return _describe(error)
    return None


def _save_random_state(target: Path, ranks: Ranks) -> str | None:
    try:
        random_state.save(target, ranks.world.rank)
    except (OSError, RuntimeError) as error:
        return _describe(error)
    return None


def _write(engine: Any, folder: Path, tag: str) -> str | None:
    with _note_errors(engine) as errors:
        engine.save_checkpoint(str(folder), tag=tag, client_state=dict(UNIVERSAL_INFO), save_latest=False)
    return errors[0] if errors else None


@contextmanager
def _note_errors(engine: Any) -> Iterator[list[str]]:
    """Let DeepSpeed's save run to its end on a rank that cannot write, because its collectives lie between the files."""
    writer = engine.checkpoint_engine
    write, make_folders = writer.save, writer.makedirs
    errors: list[str] = []

    def noting(call: Any) -> Any:
        def attempt(*args: Any, **kwargs: Any) -> None:
            if errors:
                return  # The checkpoint is lost already; on a full disk every further file would only take its time.
            try:
                call(*args, **kwargs)
            except (OSError, RuntimeError) as error:
                errors.append(_describe(error))

        return attempt

    writer.save, writer.makedirs = noting(write), noting(make_folders)
    engine._copy_recovery_script = lambda *_: None  # `SCRIPTS`: of no use here, and one more write that can fail.
    try:
        yield errors
    finally:
        del writer.save, writer.makedirs, engine._copy_recovery_script


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def _remove(path: Path) -> None:
    """Remove a file or folder; what stays behind is said, and costs space only."""
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s could not be removed: %s", path, error)


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
            share[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
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
        replace(folder / tag / MANIFEST, strict_json(manifest, indent=1))
        replace(folder / LATEST, tag)
    except OSError as error:
        return str(error)
    return None


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` complete checkpoints, and what interrupted saves and changes of topology left.

    On rank 0, after publishing. Only names that are ours are touched: a copy that somebody made stays.
    """
    kept = complete_tags(folder)[:keep]
    for path in folder.iterdir():
        is_ours = step_of(path.name.removeprefix(UNIVERSAL)) is not None
        if (is_ours and path.name not in kept) or path.name in SCRIPTS:
            _remove(path)


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
        found = _gather(_verify(folder / tag, ranks))
        damage = [problem for _, problems in found for problem in problems]
        if not damage:
            manifest: dict[str, Any] = found[0][0]
            return manifest
        if ranks.is_first:
            log.warning("checkpoint %s is damaged (%s); falling back to the one before.", tag, "; ".join(damage[:3]))
    if tags:
        raise ValueError(
            f"{folder}: none of the checkpoints {', '.join(tags)} is undamaged. Restore one, or remove the folder to start anew."
        )
    return None


def _verify(target: Path, ranks: Ranks) -> tuple[dict[str, Any], list[str]]:
    """The manifest, and what is wrong with this rank's share of the files. Never raises: the others wait for the answer."""
    problems = []
    try:
        manifest = read_manifest(target.parent, target.name)
        files = manifest["files"]
        for name in sorted(files)[ranks.world.rank :: ranks.world.size]:
            problem = _compare(target / name, files[name])
            if problem:
                problems.append(problem)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, [f"{MANIFEST}: {_describe(error)}"]
    return manifest, problems


def _compare(path: Path, said: Mapping[str, Any]) -> str | None:
    try:
        size = path.stat().st_size
        if size != said["bytes"]:
            return f"{path.name} has {size} bytes instead of {said['bytes']}"
        return None if sha256_of(path) == said["sha256"] else f"{path.name} does not match its SHA-256"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name}: {_describe(error)}"


def load_checkpoint(engine: Any, ranks: Ranks, folder: Path, tag: str, *, universal: bool) -> None:
    """Restore the engine, and this rank's random state if the same topology saved it.

    Raises:
        RuntimeError: On the rank that could not load. It must leave its process: the others may be inside a collective.
    """
    try:
        # Runs in fp32 were once saved under another name.
        engine.checkpoint_prefix = SAVED_PREFIX if any((folder / tag).glob(f"{SAVED_PREFIX}zero_*")) else ""
        with quiet():
            loaded, _ = engine.load_checkpoint(str(folder), tag=tag)
        # Weights are the masters' rounding to the precision of now, which need not be that of the files.
        engine.optimizer.update_lp_params()
        if loaded is not None and not universal:
            random_state.load(folder / tag, ranks.world.rank)
    except Exception as error:  # DeepSpeed lets through whatever its parts raise.
        raise RuntimeError(f"{folder / tag} could not be loaded: {_describe(error)}") from error
    finally:
        engine.checkpoint_prefix = SAVED_PREFIX
    if loaded is None:
        raise RuntimeError(f"{folder / tag} could not be loaded: DeepSpeed found nothing in it")
