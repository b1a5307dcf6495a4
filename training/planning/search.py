"""Which stages x replicas x micro-batches is best for a number of devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from model.flops import layer_work
from model.partition import balance
from training.config import RunConfig
from training.planning.costs import GIB, Plan, plan_on
from training.planning.devices import Device

# Message sizes and kernels stop paying beyond; more would only lengthen the list.
LARGEST_MICRO_BATCH = 64


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


def search(run: RunConfig, device: Device, devices: int, slots: int, network_bytes_per_second: float) -> tuple[list[Plan], int]:
    """The run's model and global batch on `devices`, `slots` of them in a host.

    Returns:
        Every layout that fits in memory, the fastest first, and how many do not fit.
    """
    work = layer_work(run.model, run.data.seq_length)
    found, too_large = [], 0
    for stages, replicas, micro_batch, micro_batches in layouts(len(work), run.batch.train_batch_size, devices, slots):
        workload = dataclasses.replace(run.workload, micro_batch=micro_batch, micro_batches=micro_batches, replicas=replicas)
        plan = plan_on(device, run.model, workload, balance(work, stages), network_bytes_per_second)
        if max(plan.memory_bytes) > device.memory_gib * GIB:
            too_large += 1
        else:
            found.append(plan)
    return sorted(found, key=lambda plan: plan.step_seconds), too_large
