"""Resume: choose the newest good checkpoint, together with all ranks, and load it into the engine.

A torn or damaged checkpoint costs an interval, not the run: the one before it is taken.

DeepSpeed's files are read here and not by its loader, which unpickles whatever is in them, and for another topology (other stages, other
replicas, layers elsewhere) wants them converted first. Here each rank takes its share then out of the files of the stages that had its
layers. The weights' own files are not needed: weights are their fp32 masters, rounded.
"""

import copy
import itertools
import logging
import socket
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from training.checkpoints.find_and_verify import NO_DAMAGE, PARTITION_FILE, Checkpoint, first_good, published, some_of, step_of, verify
from training.checkpoints.snapshot import describe, load_random_state, read_file
from training.launch.process_group import Ranks, gather
from training.optimizer.parameter_groups import follow_schedule
from training.run.failure import RunError

log = logging.getLogger(__name__)


def choose_checkpoint(run: Path, ranks: Ranks, before_step: int | None = None) -> Checkpoint | None:
    """The newest checkpoint whose files are all as they were saved, the same on every rank; None if there is none yet.

    Every rank verifies its share of the files. With `before_step`, checkpoints of that step and later ones do not count.

    Raises:
        CheckpointError: On all ranks, if there are complete checkpoints but none of them is undamaged.
        RunError: On all ranks, if one that may be good cannot be read on one of them, or is there on some of them only.
    """
    saved = published(run) if ranks.is_first else []
    folders = gather([folder for folder in saved if before_step is None or (step_of(folder.name) or 0) < before_step])[0]
    warn = log.warning if ranks.is_first else lambda line: None
    return first_good(run, (_verify_together(folder, ranks) for folder in folders), warn) if folders else None


def _verify_together(folder: Path, ranks: Ranks) -> tuple[Checkpoint | None, list[str]]:
    """As `verify`, on all ranks alike: all look at all sizes, then each hashes its share of the files."""
    here, own = f"rank {ranks.world.rank} on {socket.gethostname()}", slice(ranks.world.rank, None, ranks.world.size)
    for share, hashed in ((slice(None), False), (own, True)):
        try:
            (checkpoint, found), unreadable = verify(folder, share, hashed=hashed), ""
        except ValueError as error:  # The others wait for the answer.
            checkpoint, found, unreadable = None, [], f"{here}: {error}"
        answers = gather((here, found, unreadable))
        if failures := [failure for _, _, failure in answers if failure]:
            raise RunError(failures[0])
        everywhere = set(found).intersection(*(problems for _, problems, _ in answers))
        for rank, problems, _ in answers:
            # What one host does not see, or not yet, may be there for others.
            if not hashed and (only := [problem for problem in problems if problem not in everywhere]):
                raise RunError(f"{some_of(only, 'files')} for {rank}, but not for all ranks. {NO_DAMAGE}")
        if damage := list(dict.fromkeys(problem for _, problems, _ in answers for problem in problems)):
            return checkpoint, damage
    return checkpoint, []


def load_checkpoint(engine: Any, ranks: Ranks, checkpoint: Checkpoint) -> list[str]:
    """Restore the engine, and this rank's random state if the same topology saved it.

    Returns:
        What the configuration says otherwise than the checkpoint did, and is now so (`follow_schedule`).

    Raises:
        RuntimeError: On the rank that could not load. It must leave its process: the others may be inside a collective.
    """
    folder, manifest = checkpoint.folder, checkpoint.manifest
    moved = manifest["topology"] != ranks.topology or list(manifest["partition"]) != list(engine.module.parts)
    if moved and ranks.is_first:
        log.info("checkpoint %s was saved with another topology: each rank takes its share out of its layers' files", folder.name)
    first, end = engine.module.parts[ranks.stage : ranks.stage + 2]
    stages = {stage for stage, (low, high) in enumerate(itertools.pairwise(manifest["partition"])) if low < end and first < high}
    try:
        # Each stage has the same counters.
        counters = read_file(folder / min(name for name in manifest["files"] if name.startswith("mp_rank_")))
        engine.global_steps, engine.global_samples = counters["global_steps"], counters["global_samples"]
        engine.skipped_steps = counters["skipped_steps"]
        if engine.lr_scheduler is not None:
            step = {"last_batch_iteration": engine.global_steps - engine.skipped_steps}
            engine.lr_scheduler.load_state_dict(counters["lr_scheduler"] or step)  # None if the run had no schedule.
        settings = _load_shares(engine.optimizer, checkpoint, stages, None if moved else ranks.replica)
        engine.optimizer.update_lp_params()
        if not moved:
            load_random_state(folder, ranks.world.rank)
    except Exception as error:  # Whatever is wrong with a file, in one line.
        raise RuntimeError(f"{folder} could not be loaded: {describe(error)}") from error
    return follow_schedule(engine, settings)


@torch.no_grad()
def _load_shares(optimizer: Any, checkpoint: Checkpoint, stages: Collection[int], replica: int | None) -> list[dict[str, Any]]:
    """Fill this rank's share of masters and states from the files of these stages: of one replica that has just that, or of all.

    Returns:
        The saved settings of each group, and clipping; none where this rank has no part of a group.

    Raises:
        ValueError: If the files have not all of a parameter, or more of it.
    """
    groups = zip(optimizer.bf16_groups, optimizer.fp32_groups_flat_partition, strict=True)
    own = {
        optimizer.param_names[weight]: (index, masters, weight._hp_mapping, weight.numel())
        for index, (weights, masters) in enumerate(groups)
        for weight in weights
        if weight._hp_mapping is not None  # Else it is other replicas'.
    }
    settings: list[dict[str, Any]] = [{} for _ in optimizer.bf16_groups]
    ends: dict[tuple[int, str], int] = {}
    for stage, name, piece, values, saved in _pieces(checkpoint, stages, replica):
        if name not in own:
            continue
        index, masters, mapping, _ = own[name]
        settings[index] = saved
        # Of the whole parameter the piece is `begin` to `end`, and the share begins at `first`. Both stages of a tied one have the same.
        first, numel = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
        begin = ends.get((stage, name), 0 if replica is None else first)
        end = ends[stage, name] = begin + piece.numel
        low, high = max(begin, first), min(end, first + numel)
        states = optimizer.state[masters]
        if optimizer.optimizer.param_groups[index].get("amsgrad"):  # From now on, where the run began without.
            states.setdefault("max_exp_avg_sq", torch.zeros_like(masters))
        for key, value in values.items():
            if not (torch.is_tensor(value) and value.ndim == 1):  # Adam's step, the same for all of the group.
                states[key] = copy.deepcopy(value)
            elif low < high:
                if key not in states and key != "fp32":
                    states[key] = torch.zeros_like(masters)
                target = masters if key == "fp32" else states[key]
                here, there = mapping.hp_fragment_address.start + low - first, piece.start + low - begin
                target[here : here + high - low] = value[there : there + high - low]
    if missing := own.keys() - {name for _, name in ends}:
        raise ValueError(f'it has no "{min(missing)}", which the model has')
    for (_, name), end in ends.items():
        share, numel = own[name][2].lp_fragment_address, own[name][3]
        wanted = numel if replica is None else share.start + share.numel
        if end != wanted:
            raise ValueError(f'it has {end} values of "{name}" where the model has {wanted}')
    # What torch does to states that it loads: a step may have been saved as a number, or belong on the device.
    optimizer.optimizer.load_state_dict(optimizer.optimizer.state_dict())
    return settings


def _pieces(
    checkpoint: Checkpoint, stages: Collection[int], replica: int | None
) -> Iterator[tuple[int, str, Any, dict[str, Any], dict[str, Any]]]:
    """What the optimizer's files of these stages hold, of one replica or replica after replica.

    Yields:
        The stage; a parameter's name, and where a piece of it is in the flat tensors of its group; these, "fp32" being the masters, and
        the group's other states by name; and the group's settings.
    """
    matches = map(PARTITION_FILE.fullmatch, checkpoint.manifest["files"])
    for saved_by, stage, file in sorted((int(match[1]), int(match[2]), match[0]) for match in matches if match):
        if stage in stages and replica in (None, saved_by):
            optimizer = read_file(checkpoint.folder / file)["optimizer_state_dict"]
            base = optimizer["base_optimizer_state"]
            groups = zip(optimizer["param_slice_mappings"], optimizer["single_partition_of_fp32_groups"], base["param_groups"], strict=True)
            for index, (mapping, masters, settings) in enumerate(groups):
                values = {"fp32": masters, **base["state"].get(index, {})}
                for name, piece in mapping.items():
                    yield stage, name, piece, values, {**settings, "clip_grad": optimizer["clip_grad"]}
