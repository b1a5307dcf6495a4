"""How long each layer takes here, measured for a moment: what `pipeline.partition = "measured"` balances."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from model.config import InitializeConfig, ModelConfig
from model.flops import Workload
from model.initialize import Weights
from model.layers import Layer, layers
from model.layers.cross_entropy import loss
from model.layers.embeddings import TokenEmbedding
from model.layers.head import project

ROUNDS = 10
LIMIT_SECONDS = 10.0


def layer_pass_seconds(
    config: ModelConfig, workload: Workload, *, device: torch.device, synchronize: Callable[[], None], cold_bytes: int = 0
) -> list[tuple[float, float]]:
    """Seconds of one forward and one backward pass of each layer; the loss belongs to the head.

    Layers of one class are alike, so one of each is timed. Gradients are set to zero, accumulated and added to an fp32 buffer, as in every
    micro-batch of a step but its first. Global generators are left as they were. The times are those of the fastest round; with
    `cold_bytes`, which says how a run fares, their means: a step is a sum, in which moments that other work took count.

    Args:
        config: The model.
        workload: Rows and tokens of a micro-batch, and the precision.
        device: Where to measure.
        synchronize: Waits until the device is idle.
        cold_bytes: Written between two passes, so that weights come from memory as in a model that fits in no cache.
    """
    between = torch.zeros(cold_bytes // 4, device=device)
    entries = layers(config)
    kinds = [(entry.module, entry is entries[-1]) for entry in entries]
    forked: dict[str, Any] = {"devices": []} if device.type == "cpu" else {"devices": [device], "device_type": device.type}
    with torch.random.fork_rng(**forked):
        one_of_each = dict(zip(kinds, entries, strict=True))
        passes = {kind: _forward_and_backward(entry, config, workload, device) for kind, entry in one_of_each.items()}
        start = time.perf_counter()
        rounds: list[dict[tuple[object, bool], tuple[float, float]]] = []
        # In turns, so that a moment in which the machine was busy does not fall on one kind alone. The first round warms up.
        while len(rounds) < 2 or (len(rounds) < ROUNDS and time.perf_counter() - start < LIMIT_SECONDS):
            rounds.append({kind: _timed(run, synchronize, between) for kind, run in passes.items()})
    of_kind = {kind: [times[kind] for times in rounds[1:]] for kind in passes}
    taken = {kind: _mean(times) if cold_bytes else min(times, key=sum) for kind, times in of_kind.items()}
    return [taken[kind] for kind in kinds]


def _mean(times: list[tuple[float, float]]) -> tuple[float, float]:
    forward, backward = zip(*times, strict=True)
    return statistics.fmean(forward), statistics.fmean(backward)


def _forward_and_backward(
    entry: Layer, config: ModelConfig, workload: Workload, device: torch.device
) -> tuple[Callable[[], Tensor], Callable[[Tensor], None]]:
    """Two functions: one runs a layer forward, the other takes the result backward and accumulates the gradients."""
    shape, dtype = (workload.micro_batch, workload.seq_length), torch.bfloat16 if workload.bf16 else torch.float32
    module = entry.build(config, Weights(replace(config, initialize=InitializeConfig()), seed=0)).to(device=device, dtype=dtype)
    totals = [torch.zeros_like(weight, dtype=torch.float32) for weight in module.parameters()]
    tokens = torch.randint(config.vocab_size, shape, device=device)
    hidden = torch.randn(*shape, config.hidden_size, device=device).to(dtype)
    is_head = entry.index == len(config.layer_classes) - 1

    def forward() -> Tensor:
        if is_head:
            weight = module.get_parameter("weight")
            return loss(project(weight, hidden.detach().requires_grad_()), tokens)
        return module(tokens if isinstance(module, TokenEmbedding) else hidden.detach().requires_grad_())

    def backward(output: Tensor) -> None:
        for weight in module.parameters():
            if weight.grad is not None:
                weight.grad.zero_()
        output.backward(None if is_head else hidden)
        for total, weight in zip(totals, module.parameters(), strict=True):
            assert weight.grad is not None, "the pass above uses every parameter"
            total.add_(weight.grad.to(total.dtype))  # In bf16 by way of an fp32 copy.

    return forward, backward


def _timed(
    run: tuple[Callable[[], Tensor], Callable[[Tensor], None]], synchronize: Callable[[], None], between: Tensor
) -> tuple[float, float]:
    forward, backward = run
    between += 1
    synchronize()
    start = time.perf_counter()
    output = forward()
    synchronize()
    middle = time.perf_counter()
    backward(output)
    synchronize()
    return middle - start, time.perf_counter() - middle
