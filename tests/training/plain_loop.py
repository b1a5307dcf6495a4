"""The yardstick of a run: the same training without pipeline, ZeRO or engine, in a loop that can be read at a glance."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from data.batches.datasets import open_datasets
from model.gpt import GPT
from model.layers.cross_entropy import loss
from training.config import RunConfig


@dataclass(frozen=True)
class PlainRun:
    """What came of it: the loss and the gradient norm of each step, and the model with its fp32 weights."""

    losses: list[float]
    norms: list[float]
    model: GPT


def train_plainly(config: RunConfig, rates: Iterable[float]) -> PlainRun:
    """One step for each learning rate of the first group: fp32 masters and gradient sums, torch's optimizers, clipping at 1.

    The run's precision must be decided. In bf16 the weights are the masters' rounding.
    """
    model = GPT(config.model, seed=config.run.seed)
    dtype = torch.bfloat16 if config.uses_bf16 else torch.float32
    working = copy.deepcopy(model).to(dtype)
    if config.model.initialize.method == "scratch":
        # DeepSpeed clones its masters from the weights as cast; only copied weights are handed to it exactly.
        model = copy.deepcopy(working).float()
    pairs = list(zip(model.parameters(), working.parameters(), strict=True))
    masters = [master for master, _ in pairs]
    optimizers = build_optimizers(config, model)
    datasets = open_datasets(config.data, seed=config.run.seed)
    batches = datasets.train.batches(start_sample=0, replica=0, num_replicas=1, micro_batch=config.batch.micro_batch)
    losses, norms = [], []
    for rate in rates:
        for master in masters:
            master.grad = torch.zeros_like(master)
        total = 0.0
        for _ in range(config.batch.accumulation * config.batch.replicas):
            inputs, labels = next(batches)
            value = loss(working(inputs), labels) / (config.batch.accumulation * config.batch.replicas)
            total += value.item()
            value.backward()
            for master, weight in pairs:
                assert master.grad is not None
                assert weight.grad is not None
                master.grad += weight.grad.float()
                weight.grad = None
        norms.append(float(nn.utils.clip_grad_norm_(masters, 1.0)))
        for optimizer, ratio in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * ratio
            with products_in(dtype):
                optimizer.step()
        with torch.no_grad():
            for master, weight in pairs:
                weight.copy_(master)
        losses.append(total)
    return PlainRun(losses, norms, model)


def build_optimizers(config: RunConfig, model: GPT) -> list[tuple[torch.optim.Optimizer, float]]:
    """AdamW, or Muon on the matrices of the blocks and AdamW on the rest; each with its share of the first group's learning rate."""
    settings: dict[str, Any] = config.deepspeed["optimizer"]["params"]
    last_half = 1 + 2 * config.model.num_layers
    inside = [
        weight
        for name, weight in model.named_parameters()
        if config.optimizer_type == "Muon" and weight.ndim == 2 and 2 <= int(name.split(".")[0]) <= last_half
    ]
    others = [weight for weight in model.parameters() if all(weight is not other for other in inside)]
    decay = settings.get("weight_decay", 0.0)
    groups = [
        {"params": [weight for weight in others if weight.ndim >= 2], "weight_decay": decay},
        {"params": [weight for weight in others if weight.ndim < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=0.0, betas=tuple(settings["betas"]), eps=settings.get("eps", 1e-8))
    if not inside:
        return [(adam, 1.0)]
    ratio = settings.get("adam_lr", settings.get("lr", 0.0)) / settings.get("muon_lr", settings.get("lr", 0.0))
    muon = torch.optim.Muon(inside, lr=0.0, weight_decay=decay, momentum=settings["momentum"], adjust_lr_fn="match_rms_adamw")
    return [(muon, 1.0), (adam, ratio)]


@contextlib.contextmanager
def products_in(dtype: torch.dtype) -> Iterator[None]:
    """Muon in torch casts to bf16 with this method, and has no setting for a processor on which that is slow."""
    with pytest.MonkeyPatch.context() as patch:
        if dtype != torch.bfloat16:
            patch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
        yield
