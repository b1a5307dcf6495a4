"""What the parts of a step cost: seconds of each stage, bytes on each link, memory; from a device's figures or measured here.

And which stages x replicas x micro-batches cost least.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from model.config import ModelConfig
from model.flops import StageSummary, Workload, block_matrix_parameters, layer_parameters, layer_work, stage_summary
from model.partition import balance
from training.config import RunConfig
from training.planning.data_sheets import Device
from training.planning.schedule import Played, StageSeconds, play

GIB = 2**30
# Message sizes and kernels stop paying beyond; more would only lengthen the list.
LARGEST_MICRO_BATCH = 64
# Of a layer's work, forward and backward: the backward pass does twice the forward's products.
FORWARD_SHARE = 1 / 3
# Per parameter: gradient, master and two moments are read, master, moments and weight written.
UPDATE_BYTES = 30
NEWTON_SCHULZ_STEPS = 5
# What a process on CPUs takes beside what is counted: pages of libraries that only training touches (14 to 21 MiB), their buffers and
# Python's objects (14 to 25); and holes in the heap, a share of what comes and goes in it. Both fitted; docs/cluster.md has to what, and
# how well.
LIBRARIES_BYTES = 43 << 20
HOLES = 0.25
# Blocks from this size on glibc maps one by one: they leave no holes.
MAPPED_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one optimizer step costs, with these layers on each stage."""

    workload: Workload
    rows: Sequence[StageSummary]
    """What each stage holds."""
    memory_bytes: Sequence[int]
    """By stage, one process at its peak."""
    seconds: Sequence[StageSeconds]
    transfer: float
    """Seconds of one micro-batch over one boundary."""

    @cached_property
    def played(self) -> Played:
        """The step as DeepSpeed's schedule has it."""
        return play(self.seconds, self.workload.micro_batches, self.transfer)

    @property
    def stages(self) -> int:
        """Of each pipeline."""
        return len(self.rows)

    @property
    def devices(self) -> int:
        """One for each stage of each replica."""
        return self.stages * self.workload.replicas

    @property
    def step_seconds(self) -> float:
        """One optimizer step."""
        return self.played.seconds

    @property
    def exchange_seconds(self) -> float:
        """What the slowest stage does once a step: sums of gradients, optimizer, exchange of weights."""
        return max(stage.reduce + stage.step for stage in self.seconds)


def stage_seconds(row: StageSummary, layers: Sequence[tuple[float, float]], *, reduce: float, step: float) -> StageSeconds:
    """Of a stage, from the seconds of all layers, forward and backward of one micro-batch, and what it does once a step."""
    own = layers[row.first_layer : row.first_layer + row.num_layers]
    forward, backward = (sum(seconds) for seconds in zip(*own, strict=True))
    return StageSeconds(forward=forward, backward=backward, reduce=reduce, step=step)


def process_bytes(row: StageSummary) -> int:
    """Of a process on CPUs at its peak, what imports took and an asynchronous save's copy left out.

    Its heap gives back little: activations and update add up, and what libraries take comes on top.
    """
    # Gradients of a micro-batch, as large as the weights, are dropped at the end of each step; the update takes two blocks.
    passing = row.activation_bytes + row.weight_bytes + (row.update_bytes if row.update_bytes // 2 < MAPPED_BYTES else 0)
    return row.kept_bytes + row.activation_bytes + row.update_bytes + LIBRARIES_BYTES + int(HOLES * passing)


def saved_bytes(row: StageSummary) -> int:
    """A rank's share of a checkpoint, weights, masters and moments; an asynchronous save keeps a copy of it in host memory."""
    return row.weight_bytes + row.optimizer_bytes


def plan_on(
    device: Device, config: ModelConfig, workload: Workload, parts: Sequence[int], *, slots: int, network_bytes_per_second: float
) -> Plan:
    """A step on devices that reach their efficiency everywhere, `slots` in a host. All stages of a host share its links to others."""
    tokens = workload.seq_length * workload.micro_batch
    both_ways = [work * tokens / device.reached_flops(workload.bf16) for work in layer_work(config, workload.seq_length)]
    layers = recomputed([(seconds * FORWARD_SHARE, seconds * (1 - FORWARD_SHARE)) for seconds in both_ways], workload)
    summed, gathered = bytes_sent(workload)
    gradients = summed / (summed + gathered)
    rows, link = stage_summary(config, parts, workload), device.link_gb_per_second * 1e9
    on_one_host = len(rows) * workload.replicas <= slots  # It needs no network.
    bytes_per_second = link if on_one_host else network_bytes_per_second / len(rows)
    stages = []
    for row in rows:
        network = ring_bytes(row.parameters, workload) / bytes_per_second
        update = optimizer_seconds(device, config, workload, row)
        stages.append(stage_seconds(row, layers, reduce=network * gradients, step=network * (1 - gradients) + update))
    memory = [row.peak_bytes for row in rows]
    return Plan(workload=workload, rows=rows, memory_bytes=memory, seconds=stages, transfer=activation_bytes(config, workload) / link)


def recomputed(seconds: list[tuple[float, float]], workload: Workload) -> list[tuple[float, float]]:
    """With activation checkpointing every layer but the head runs forward once more on the way back."""
    if not workload.activation_checkpoint_interval:
        return seconds
    return [(forward, backward + forward) for forward, backward in seconds[:-1]] + seconds[-1:]


def optimizer_seconds(device: Device, config: ModelConfig, workload: Workload, row: StageSummary) -> float:
    """Of a stage: masters and moments are read and written once (memory bandwidth), and Muon's matrices multiplied."""
    seconds = UPDATE_BYTES * row.parameters / workload.replicas / (device.memory_gb_per_second * 1e9)
    if workload.muon:
        # A quintic iteration on an m x n matrix, m the smaller side, multiplies m x n by n x m, m x m by m x m, m x m by m x n.
        in_matrices = sum(block_matrix_parameters(config)[row.first_layer : row.first_layer + row.num_layers])
        products = NEWTON_SCHULZ_STEPS * 2 * in_matrices * 3 * config.hidden_size
        seconds += products / workload.replicas / device.reached_flops(workload.bf16)
    return seconds


def activation_bytes(config: ModelConfig, workload: Workload) -> int:
    """(B, T, D) in the run's precision."""
    return workload.micro_batch * workload.seq_length * config.hidden_size * (2 if workload.bf16 else 4)


def ring_bytes(parameters: int, workload: Workload) -> int:
    """What a rank sends in a step to sum gradients and to gather weights (ZeRO-1), by a ring: (R - 1) / R of `bytes_sent`."""
    return math.ceil(parameters * sum(bytes_sent(workload)) * (workload.replicas - 1) / workload.replicas)


def bytes_sent(workload: Workload) -> tuple[int, int]:
    """Of a parameter, once round a ring: its gradient is summed and handed on, its weight only handed on.

    Weights travel in the run's precision; gradients too, unless `communication_data_type` says otherwise.
    """
    weight = 2 if workload.bf16 else 4
    return 2 * (2 if workload.sends_bf16 else 4), weight


def layouts(num_layers: int, batch: int, devices: int, slots: int) -> Iterator[tuple[int, int, int, int]]:
    """All (stages, replicas, micro-batch, micro-batches) that use every device and divide the batch; a pipeline stays within a host."""
    slots = min(slots, devices)
    for stages in range(1, min(num_layers, slots) + 1):
        if devices % stages or slots % stages:
            continue
        replicas = devices // stages
        micro_batch = 1
        while micro_batch <= LARGEST_MICRO_BATCH and batch % (micro_batch * replicas) == 0:
            yield stages, replicas, micro_batch, batch // (micro_batch * replicas)
            micro_batch *= 2


def cut(run: RunConfig, stages: int, seconds: Sequence[float] | None = None) -> list[int]:
    """First layer of each stage, then the number of layers, as the run's `pipeline.partition` says.

    `measured` balances these seconds of the layers, and without any, where a run would measure them first, what `flops` balances.
    """
    if run.partition == "measured" and seconds is not None:
        return balance(seconds, stages)
    from model.pipeline import choose_parts  # Takes seconds: a mistake is said before.

    method = "flops" if run.partition == "measured" else run.partition
    return choose_parts(run.model, method, run.workload, stages)


def search(run: RunConfig, device: Device, devices: int, slots: int, network_bytes_per_second: float) -> tuple[list[Plan], int]:
    """The run's model and global batch on `devices`, `slots` of them in a host.

    Returns:
        Every layout that fits in memory, the fastest first, and how many do not fit.
    """
    found, too_large = [], 0
    for stages, replicas, micro_batch, micro_batches in layouts(
        len(layer_parameters(run.model)), run.batch.train_batch_size, devices, slots
    ):
        workload = dataclasses.replace(run.workload, micro_batch=micro_batch, micro_batches=micro_batches, replicas=replicas)
        parts = cut(run, stages)
        plan = plan_on(device, run.model, workload, parts, slots=slots, network_bytes_per_second=network_bytes_per_second)
        if max(plan.memory_bytes) > device.memory_gib * GIB:
            too_large += 1
        else:
            found.append(plan)
    return sorted(found, key=lambda plan: plan.step_seconds), too_large
