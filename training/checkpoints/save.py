"""Save, publish, prune.

DeepSpeed writes the tensors; what it does not do is done here. A checkpoint is a folder that becomes real in this order: all ranks
write, all ranks agree that nobody failed, files are synced and hashed, rank 0 writes the manifest, and only then `latest` is
replaced in one step. A folder without a manifest is a save that was interrupted.

No rank may leave a save on its own: the others would wait for it in a collective. So every part of it ends in an exchange of
errors, and DeepSpeed's writes note theirs and go on (`_patched_deepspeed_writes`).
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ds_configs.files import sha256_of, write_text
from training.checkpoints import random_state
from training.checkpoints.published import LATEST, MANIFEST, UNIVERSAL, published, step_of, tag_of
from training.launch.process_group import Ranks, gather
from training.run_folder.strict_json import strict_json

log = logging.getLogger(__name__)

UNIVERSAL_INFO = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
# Scripts DeepSpeed used to leave beside its checkpoints; they cannot read a pipeline's.
SCRIPTS = ("zero_to_fp32.py", "zero_to_torch.py")


class _PartFailedError(Exception):
    """A part of a save failed on some rank; raised on all."""


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
    target = folder / tag_of(engine.global_steps)
    try:
        # The small writes come first: a rank that cannot make them has not gone into DeepSpeed's collectives yet.
        _on_all(lambda: _make_folder(target) if ranks.is_first else None)
        _on_all(lambda: random_state.save(target, ranks.world.rank))
        _on_all(lambda: _write(engine, target))
        shares = _on_all(lambda: _hash_share(target, ranks))
        manifest = {
            "tag": target.name,
            "step": engine.global_steps,
            "consumed_samples": engine.global_samples,
            "topology": {"pipe": ranks.stages, "data": ranks.replicas},
            "partition": list(engine.module.parts),
            **facts,
            "files": dict(sorted(item for share in shares for item in share.items())),
        }
        _on_all(lambda: _publish(target, manifest) if ranks.is_first else None)
    except _PartFailedError as failed:
        if ranks.is_first:
            log.error("checkpoint %s was not saved: %s. The checkpoints before it are untouched.", target.name, failed)
            _remove(target)
        return False
    return True


def _on_all(part: Callable[[], Any]) -> list[Any]:
    """Do a part of a save and wait for all ranks to have done theirs. Returns what each has to give.

    Raises:
        _PartFailedError: On all ranks alike, if one of them failed.
    """
    given, problem = None, None
    try:
        given = part()
    except (OSError, RuntimeError) as error:
        problem = describe(error)
    answers = gather((given, problem))
    failed = [f"rank {rank}: {problem}" for rank, (_, problem) in enumerate(answers) if problem]
    if failed:
        more = f" (and {len(failed) - 3} more ranks)" if len(failed) > 3 else ""
        raise _PartFailedError("; ".join(failed[:3]) + more)
    return [given for given, _ in answers]


def describe(error: Exception) -> str:
    """An error's kind and first line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def _make_folder(target: Path) -> None:
    """An empty folder: what an interrupted save left there is removed."""
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)


def _write(engine: Any, target: Path) -> None:
    with _patched_deepspeed_writes(engine) as errors:
        engine.save_checkpoint(str(target.parent), tag=target.name, client_state=dict(UNIVERSAL_INFO), save_latest=False)
    if errors:
        raise errors[0]


@contextmanager
def _patched_deepspeed_writes(engine: Any) -> Iterator[list[Exception]]:
    """Let DeepSpeed's save run to its end on a rank that cannot write, because its collectives lie between the files."""
    writer = engine.checkpoint_engine
    write, make_folders = writer.save, writer.makedirs
    errors: list[Exception] = []

    def noting(call: Any) -> Any:
        def attempt(*args: Any, **kwargs: Any) -> None:
            if errors:
                return  # The checkpoint is lost already; on a full disk every further file would only take its time.
            try:
                call(*args, **kwargs)
            except (OSError, RuntimeError) as error:
                errors.append(error)

        return attempt

    writer.save, writer.makedirs = noting(write), noting(make_folders)
    engine._copy_recovery_script = lambda *_: None  # `SCRIPTS`: of no use here, and one more write that can fail.
    try:
        yield errors
    finally:
        del writer.save, writer.makedirs, engine._copy_recovery_script


def _hash_share(target: Path, ranks: Ranks) -> dict[str, Any]:
    """Sync and hash this rank's share of the files, as they can be read back, not as they were meant. Returns facts by name."""
    share = {}
    for path in sorted(path for path in target.iterdir() if path.is_file())[ranks.world.rank :: ranks.world.size]:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        share[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    return share


def _publish(target: Path, manifest: Mapping[str, Any]) -> None:
    write_text(target / MANIFEST, strict_json(manifest, indent=1))
    write_text(target.parent / LATEST, target.name)


def prune(run: Path, keep: int) -> None:
    """Remove all but the newest `keep` complete checkpoints, and what interrupted saves and changes of topology left.

    On rank 0, after publishing. Only names that are ours are touched: a copy that somebody made stays.
    """
    kept = published(run)[:keep]
    for path in (run / "checkpoints").iterdir():
        is_ours = step_of(path.name.removeprefix(UNIVERSAL)) is not None or path.name.startswith(f".{LATEST}.") or path.name in SCRIPTS
        if is_ours and path not in kept:
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a file or folder; what stays behind is said, and costs space only."""
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s could not be removed: %s", path, error)
