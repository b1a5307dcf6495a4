"""Batch arithmetic: how many ranks, pipelines and micro-batches a configuration means, on any machine. No torch here.

DeepSpeed's rule, with a pipeline counted as one worker:
`train_batch_size` = `train_micro_batch_size_per_gpu` x `gradient_accumulation_steps` x replicas.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ds_configs.errors import FieldError

KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The final numbers. `train_batch_size`, in samples, is `micro_batch` x `accumulation` x `replicas`."""

    stages: int
    replicas: int
    micro_batch: int
    accumulation: int
    pinned: bool  # All three keys were given, so the number of replicas was part of the configuration.

    @property
    def train_batch_size(self) -> int:
        """Samples per optimizer step, over all replicas."""
        return self.micro_batch * self.accumulation * self.replicas

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.stages * self.replicas


def resolve_batch(values: Mapping[str, Any], world_size: int | None) -> Batch:
    """Derive the missing batch key, or check all three against the number of ranks that were started.

    Before a launch that is None: then three keys give the number of replicas, and two mean one.

    Raises:
        ValueError: If the numbers do not fit, with the arithmetic and the way out.
    """
    stages = values.get("pipeline", {}).get("stages", 1)
    given = {key: values[key] for key in KEYS if values.get(key) is not None}
    if len(given) < 2:
        missing = ", ".join(key for key in KEYS if key not in given)
        raise ValueError(
            f"two of train_batch_size, train_micro_batch_size_per_gpu and gradient_accumulation_steps are needed; {missing} not given."
        )
    if world_size is not None and world_size % stages:
        by_hand = " If no launcher started it: unset RANK, PMI_RANK or what else says that one did." if world_size == 1 else ""
        raise ValueError(
            f"{world_size} ranks were started, but pipeline.stages = {stages}: whole pipelines need a multiple of {stages} ranks. "
            f"Give each host slots={stages} (or a multiple) in the hostfile, or set pipeline.stages to a divisor of {world_size}.{by_hand}"
        )
    replicas = None if world_size is None else world_size // stages
    pinned = len(given) == 3
    if pinned:
        replicas = _pinned_replicas(given, stages, replicas)
    else:
        replicas = replicas or 1
        _derive(given, replicas)
    return Batch(stages=stages, replicas=replicas, micro_batch=given[KEYS[1]], accumulation=given[KEYS[2]], pinned=pinned)


def can_split(values: Mapping[str, Any], ranks: int) -> bool:
    """Whether the batch can be divided over so many ranks."""
    try:
        resolve_batch(values, ranks)
    except ValueError:
        return False
    return True


def _pinned_replicas(given: Mapping[str, int], stages: int, replicas: int | None) -> int:
    """All three keys pin the world, so a hostfile that was not found cannot start a fraction of the run unnoticed."""
    total, micro_batch, accumulation = (given[key] for key in KEYS)
    if total % (micro_batch * accumulation):
        raise FieldError(
            KEYS[0],
            f" = {total} is not a multiple of train_micro_batch_size_per_gpu {micro_batch} x "
            f"gradient_accumulation_steps {accumulation}. Change one of them, or set one to null to have it derived.",
        )
    wanted = total // (micro_batch * accumulation)
    if replicas is not None and replicas != wanted:
        raise FieldError(
            KEYS[0],
            f" {total} = {micro_batch} x {accumulation} x {wanted} means {wanted} pipelines of {stages} stages "
            f"= {wanted * stages} ranks, "
            f"but {replicas * stages} ranks were started ({replicas} pipelines). Was the hostfile found? "
            "gradient_accumulation_steps=null keeps the global batch on any number of nodes.",
        )
    return wanted


def _derive(given: dict[str, int], replicas: int) -> None:
    """Add micro-batch or accumulation, where it is missing."""
    if KEYS[0] not in given:
        return
    known_name, missing = (KEYS[1], KEYS[2]) if KEYS[1] in given else (KEYS[2], KEYS[1])
    total, known = given[KEYS[0]], given[known_name]
    if total % (known * replicas):
        raise FieldError(
            KEYS[0],
            f" = {total} cannot be split over {replicas} pipelines with {known_name} = {known}: "
            f"{known} x {replicas} does not divide it. Use a multiple of {known * replicas}.",
        )
    given[missing] = total // (known * replicas)
