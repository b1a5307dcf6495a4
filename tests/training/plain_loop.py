"""The yardstick of a run: the same training without pipeline, ZeRO or engine, in a loop that can be read at a glance."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from data.dataset import open_corpus
from model.gpt import GPT, loss
from training.config import RunConfig


@dataclass(frozen=True)
class PlainRun:
    """What came of it: the loss of each step, and the model with its fp32 weights."""

    losses: list[float]
    model: GPT


def train_plainly(config: RunConfig, rates: Iterable[float]) -> PlainRun:
    """One step for each learning rate: bf16 weights, fp32 masters and gradient sums, AdamW on matrices and vectors apart, clipping at 1."""
    model = GPT(config.model, seed=config.run.seed)
    working = copy.deepcopy(model).bfloat16()
    if config.model.initialize.method == "scratch":
        # DeepSpeed clones its masters from the weights as cast; only copied weights are handed to it exactly.
        model = copy.deepcopy(working).float()
    pairs = list(zip(model.parameters(), working.parameters(), strict=True))
    masters = [master for master, _ in pairs]
    settings = config.deepspeed["optimizer"]["params"]
    groups = [
        {"params": [master for master in masters if master.ndim >= 2], "weight_decay": settings["weight_decay"]},
        {"params": [master for master in masters if master.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=tuple(settings["betas"]))
    corpus = open_corpus(config.data, seed=config.run.seed)
    batches = corpus.train.batches(start_sample=0, replica=0, num_replicas=1, micro_batch=config.batch.micro_batch)
    losses = []
    for rate in rates:
        for master in masters:
            master.grad = torch.zeros_like(master)
        total = 0.0
        for _ in range(config.batch.accumulation):
            inputs, labels = next(batches)
            value = loss(working(inputs), labels)
            total += value.item() / config.batch.accumulation
            (value / config.batch.accumulation).backward()
            for master, weight in pairs:
                assert master.grad is not None
                assert weight.grad is not None
                master.grad += weight.grad.float()
                weight.grad = None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        with torch.no_grad():
            for master, weight in pairs:
                weight.copy_(master)
        losses.append(total)
    return PlainRun(losses, model)
