"""What the parts of a step cost: seconds of each stage, bytes on each link, memory; from a device's figures or measured here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from model.config import ModelConfig
from model.flops import Workload, block_matrix_parameters, layer_work, stage_summary
from training.planning.devices import Device
from training.planning.schedule import Played, StageSeconds, one_after_the_other, play
from training.run.batch import Batch

GIB = 2**30
# Of a layer's work, forward and backward: the backward pass does twice the forward's products.
FORWARD_SHARE = 1 / 3
# Per parameter: gradient, master and two moments are read, master, moments and weight written.
UPDATE_BYTES = 30
NEWTON_SCHULZ_STEPS = 5
# What oneDNN, gloo and the heap of a process take beside what is counted, on CPUs: measured, 78 to 139 MiB for stages of 14 to 30 M
# parameters.
SCRATCH_BYTES = 100 << 20


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How many devices do what."""

    stages: int
    replicas: int
    micro_batch: int
    micro_batches: int
    parts: tuple[int, ...]

    @classmethod
    def of(cls, batch: Batch, parts: Sequence[int]) -> Layout:
        """As a configuration says it."""
        return cls(
            stages=batch.stages,
            replicas=batch.replicas,
            micro_batch=batch.micro_batch,
            micro_batches=batch.accumulation,
            parts=tuple(parts),
        )

    @property
    def devices(self) -> int:
        """All of them."""
        return self.stages * self.replicas


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A layout and what one optimizer step of it costs."""

    layout: Layout
    played: Played
    naive_seconds: float
    memory_bytes: tuple[int, ...]
    """By stage, one process at its peak; libraries not counted."""
    process_bytes: tuple[int, ...]
    """The same for a process on CPUs, whose heap gives back little: activations and update add up, and libraries' scratch comes on top."""
    checkpoint_bytes: int
    """Weights, masters and moments of all stages."""
    snapshot_bytes: int
    """What the rank with the largest share of them holds."""
    activation_bytes: int
    """One micro-batch over one boundary between stages, one way."""
    gradient_bytes: int
    """What the largest stage exchanges with its replicas in a step, both ways (ring)."""
    exchange_seconds: float

    @property
    def step_seconds(self) -> float:
        """One optimizer step."""
        return self.played.seconds


def plan_step(
    config: ModelConfig,
    layout: Layout,
    workload: Workload,
    seconds: Sequence[tuple[float, float]],
    *,
    transfer: float,
    exchange: Sequence[float],
) -> Plan:
    """Put the costs of layers together.

    Args:
        config: The model.
        layout: Which layers are on which stage, and how often.
        workload: Sequence length, precision and the like.
        seconds: Of each layer, forward and backward, one micro-batch.
        transfer: Seconds of one micro-batch over one boundary.
        exchange: Of each stage, seconds once a step.
    """
    stages = [
        StageSeconds(
            forward=sum(one for one, _ in seconds[start:stop]), backward=sum(two for _, two in seconds[start:stop]), step=exchange[stage]
        )
        for stage, (start, stop) in enumerate(pairwise(layout.parts))
    ]
    rows = stage_summary(config, layout.parts, workload)
    return Plan(
        layout=layout,
        played=play(stages, layout.micro_batches, transfer),
        naive_seconds=one_after_the_other(stages, layout.micro_batches, transfer),
        memory_bytes=tuple(row.peak_bytes for row in rows),
        process_bytes=tuple(row.kept_bytes + row.activation_bytes + row.update_bytes + SCRATCH_BYTES for row in rows),
        checkpoint_bytes=sum(row.weight_bytes + row.optimizer_bytes * workload.replicas for row in rows),
        snapshot_bytes=max(row.weight_bytes + row.optimizer_bytes for row in rows),
        activation_bytes=activation_bytes(config, workload),
        gradient_bytes=max(ring_bytes(row.parameters, workload) for row in rows),
        exchange_seconds=max(exchange),
    )


def layer_seconds_on(device: Device, config: ModelConfig, workload: Workload) -> list[tuple[float, float]]:
    """Of each layer, (forward, backward) seconds of one micro-batch on a device that reaches its efficiency everywhere."""
    tokens = workload.seq_length * workload.micro_batch
    totals = [work * tokens / device.flops(workload.bf16) for work in layer_work(config, workload.seq_length)]
    return recomputed([(total * FORWARD_SHARE, total * (1 - FORWARD_SHARE)) for total in totals], workload)


def recomputed(seconds: list[tuple[float, float]], workload: Workload) -> list[tuple[float, float]]:
    """With activation checkpointing every layer but the head runs forward once more on the way back."""
    if not workload.activation_checkpoint_interval:
        return seconds
    return [(forward, backward + forward) for forward, backward in seconds[:-1]] + seconds[-1:]


def optimizer_seconds_on(device: Device, config: ModelConfig, layout: Layout, workload: Workload) -> list[float]:
    """Of each stage: masters and moments are read and written once (memory bandwidth), and Muon's matrices multiplied."""
    matrices = block_matrix_parameters(config)
    found = []
    for row, (start, stop) in zip(stage_summary(config, layout.parts, workload), pairwise(layout.parts), strict=True):
        seconds = UPDATE_BYTES * row.parameters / workload.replicas / (device.memory_gb_per_second * 1e9)
        if workload.muon:
            # A quintic iteration on an m x n matrix, m the smaller side, multiplies m x n by n x m, m x m by m x m, m x m by m x n.
            products = NEWTON_SCHULZ_STEPS * 2 * sum(matrices[start:stop]) * 3 * config.hidden_size
            seconds += products / workload.replicas / device.flops(workload.bf16)
        found.append(seconds)
    return found


def activation_bytes(config: ModelConfig, workload: Workload) -> int:
    """(B, T, D) in the run's precision."""
    return workload.micro_batch * workload.seq_length * config.hidden_size * (2 if workload.bf16 else 4)


def ring_bytes(parameters: int, workload: Workload) -> int:
    """What a rank sends in a step to sum gradients and to gather weights (ZeRO-1), by a ring: twice (R - 1) / R of each.

    Gradients travel in the run's precision (DeepSpeed's default `communication_data_type`), weights too.
    """
    size = parameters * (2 if workload.bf16 else 4)
    return math.ceil((2 + 1) * size * (workload.replicas - 1) / workload.replicas)


def exchange_seconds_on(config: ModelConfig, layout: Layout, workload: Workload, network_bytes_per_second: float) -> list[float]:
    """Of each stage, once a step: its gradients and weights over the network. All stages of a host share its links."""
    rows = stage_summary(config, layout.parts, workload)
    if workload.replicas == 1:
        return [0.0] * len(rows)
    return [ring_bytes(row.parameters, workload) * layout.stages / network_bytes_per_second for row in rows]
