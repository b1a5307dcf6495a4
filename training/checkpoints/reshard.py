"""Resume on another topology: fewer or more stages or replicas than the checkpoint was saved with.

DeepSpeed's universal form cuts a checkpoint into one folder per parameter, which any topology can read. It is made beside the
checkpoint, by rank 0, the first time it is needed. DeepSpeed's own converter (`deepspeed.checkpoint.ds_to_universal`, 0.19.8) knows Adam's
two moments and no other state, so Muon's momentum would stop it; the layout here is the same.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils.tensor_fragment import fragment_address

from training.checkpoints.find_and_verify import PARTITION_FILE, UNIVERSAL, Checkpoint
from training.launch.process_group import Ranks, gather

log = logging.getLogger(__name__)

COMPLETE = ".complete"


def needs_resharding(checkpoint: Checkpoint, ranks: Ranks, parts: Sequence[int]) -> bool:
    """True if the checkpoint's files are cut differently from this job: other stages, other replicas, or layers elsewhere."""
    manifest = checkpoint.manifest
    return manifest["topology"] != ranks.topology or list(manifest["partition"]) != list(parts)


def to_universal(folder: Path, ranks: Ranks) -> Path:
    """Convert a checkpoint; returns the new folder, beside it. All ranks call this; rank 0 works.

    Raises:
        RuntimeError: On all ranks, if the conversion failed.
    """
    universal = folder.with_name(UNIVERSAL + folder.name)
    problem = None
    if ranks.is_first and not (universal / COMPLETE).exists():
        log.info("checkpoint %s was saved with another topology: converting it to DeepSpeed's universal form", folder.name)
        try:
            write_universal(folder, universal)
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            shutil.rmtree(universal, ignore_errors=True)
            problem = f"{type(error).__name__}: {error}"
    problem = gather(problem)[0]
    if problem:
        raise RuntimeError(f"{folder}: conversion to another topology failed: {problem}")
    return universal


def write_universal(source: Path, target: Path) -> None:
    """Write the universal form of a checkpoint: the fp32 master and the optimizer's state of each parameter, in files of their own.

    Raises:
        OSError: If a file cannot be read or written.
        RuntimeError: If one cannot be read as a checkpoint's.
    """
    shutil.rmtree(target, ignore_errors=True)
    (target / "zero").mkdir(parents=True)
    shapes: dict[str, torch.Size] = {}
    for path in sorted(source.glob("mp_rank_*_model_states.pt")):
        shutil.copyfile(path, target / path.name)  # Counters and the schedule's state, which the engine reads from here.
        for group in _load(path)["param_shapes"]:
            shapes |= group
    for name, states in _whole_parameters(source):
        folder = target / "zero" / name
        folder.mkdir(exist_ok=True)
        for key, value in states.items():
            content = value if key == "step" else {"param": value.view(shapes[name])}
            torch.save(content, folder / f"{key}.pt")
    # DeepSpeed copies the settings of the groups listed here over its own by position, although stages differ in their groups. Empty
    # ones leave them as the configuration made them.
    torch.save({"param_groups": [{}] * 64}, target / "zero" / "optimizer_state.pt")
    (target / COMPLETE).touch()
    os.sync()


def _whole_parameters(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and joined states of every parameter of every stage; a tied one comes once a stage, the same each time.

    Replica d holds the d-th piece of each flat group. What is one number a group (Adam's step) is the same for all.
    """
    stages: dict[int, list[tuple[int, Path]]] = defaultdict(list)
    for path in source.iterdir():
        if match := PARTITION_FILE.fullmatch(path.name):
            stages[int(match[2])].append((int(match[1]), path))
    for files in stages.values():
        pieces: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
        for _, path in sorted(files):
            optimizer = _load(path)["optimizer_state_dict"]
            states = optimizer["base_optimizer_state"]["state"]
            groups = zip(optimizer["param_slice_mappings"], optimizer["single_partition_of_fp32_groups"], strict=True)
            for index, (mapping, masters) in enumerate(groups):
                for name, part in mapping.items():
                    for key, value in {"fp32": masters, **states.get(index, {})}.items():
                        is_flat = torch.is_tensor(value) and value.shape == masters.shape
                        pieces[name][key].append(value.narrow(0, part.start, part.numel) if is_flat else value)
        for name, parts in pieces.items():
            yield name, {key: values[0] if key == "step" else torch.cat(values) for key, values in parts.items()}


def _load(path: Path) -> dict[str, Any]:
    """A file of a checkpoint, mapped into memory."""
    with torch.serialization.safe_globals([fragment_address]):
        content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    return content
