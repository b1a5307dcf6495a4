"""Resume on another topology: fewer or more stages or replicas than the checkpoint was saved with.

DeepSpeed's universal form cuts a checkpoint into one folder per parameter, which any topology can read. It is made beside the
checkpoint, by rank 0, the first time it is needed.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from training.distributed import Ranks

log = logging.getLogger(__name__)


def needs_resharding(manifest: Mapping[str, Any], ranks: Ranks, parts: Sequence[int]) -> bool:
    """True if the checkpoint's files are cut differently from this job: other stages, other replicas, or layers elsewhere."""
    return manifest["topology"] != {"pipe": ranks.stages, "data": ranks.replicas} or list(manifest["partition"]) != list(parts)


def to_universal(folder: Path, tag: str, ranks: Ranks) -> str:
    """Convert `folder/tag`; returns the new tag, next to it. All ranks call this; rank 0 works.

    Raises:
        RuntimeError: On all ranks, if the conversion failed.
    """
    universal = f"universal_{tag}"
    problem: list[str | None] = [None]
    if ranks.is_first and not (folder / universal / ".complete").exists():
        log.info("checkpoint %s was saved with another topology: converting it to DeepSpeed's universal form", tag)
        problem[0] = _convert(folder / tag, folder / universal)
    torch.distributed.broadcast_object_list(problem, src=0)
    if problem[0]:
        raise RuntimeError(f"{folder / tag}: conversion to another topology failed: {problem[0]}")
    return universal


def _convert(source: Path, target: Path) -> str | None:
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", str(source), "--output_folder", str(target)]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(target, ignore_errors=True)
        return (done.stderr.strip().splitlines() or ["no message"])[-1]
    (target / ".complete").touch()
    return None
