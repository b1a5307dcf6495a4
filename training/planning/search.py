"""Which stages x replicas x micro-batches is best for a number of devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from model.config import ModelConfig
from model.flops import Workload, layer_work
from model.partition import balance
from training.planning.costs import (
    Layout,
    Plan,
    activation_bytes,
    exchange_seconds_on,
    layer_seconds_on,
    optimizer_seconds_on,
    plan_step,
)
from training.planning.devices import Device

# Message sizes and kernels stop paying beyond; more would only lengthen the list.
LARGEST_MICRO_BATCH = 64


def plan_on(device: Device, config: ModelConfig, layout: Layout, workload: Workload, network_bytes_per_second: float) -> Plan:
    """One step of a layout on devices of a kind."""
    exchange = exchange_seconds_on(config, layout, workload, network_bytes_per_second)
    update = optimizer_seconds_on(device, config, layout, workload)
    return plan_step(
        config,
        layout,
        workload,
        layer_seconds_on(device, config, workload),
        transfer=activation_bytes(config, workload) / (device.link_gb_per_second * 1e9) if layout.stages > 1 else 0.0,
        exchange=[one + other for one, other in zip(exchange, update, strict=True)],
    )


def layouts(config: ModelConfig, batch: int, devices: int, slots: int) -> Iterator[tuple[int, int, int, int]]:
    """All (stages, replicas, micro-batch, micro-batches) that use every device and divide the batch; a pipeline stays within a host."""
    num_layers = 2 * config.num_layers + 4
    for stages in range(1, min(devices, num_layers, slots) + 1):
        if devices % stages or slots % stages:
            continue
        replicas = devices // stages
        micro_batch = 1
        while micro_batch <= LARGEST_MICRO_BATCH and batch % (micro_batch * replicas) == 0:
            yield stages, replicas, micro_batch, batch // (micro_batch * replicas)
            micro_batch *= 2


def search(
    config: ModelConfig,
    workload: Workload,
    batch: int,
    shape: tuple[int, int],
    plan: Callable[[Layout, Workload], Plan],
    memory_bytes: float,
) -> tuple[list[Plan], int]:
    """Every layout that fits in memory, the fastest first, and how many do not fit.

    Args:
        config: The model.
        workload: Sequence length and precision; the rest is the layout's.
        batch: Samples of an optimizer step.
        shape: Devices, and devices of a host.
        plan: What a layout costs.
        memory_bytes: Of a device.
    """
    work = layer_work(config, workload.seq_length)
    found, too_large = [], 0
    for stages, replicas, micro_batch, micro_batches in layouts(config, batch, *shape):
        parts = tuple(balance(work, stages))
        layout = Layout(stages=stages, replicas=replicas, micro_batch=micro_batch, micro_batches=micro_batches, parts=parts)
        planned = plan(layout, dataclasses.replace(workload, micro_batch=micro_batch, micro_batches=micro_batches, replicas=replicas))
        if max(planned.memory_bytes) > memory_bytes:
            too_large += 1
        else:
            found.append(planned)
    return sorted(found, key=lambda one: one.step_seconds), too_large
