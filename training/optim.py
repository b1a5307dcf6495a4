"""Which parameters the weight decay pulls on, and making a changed optimizer or schedule take effect on resume."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

log = logging.getLogger(__name__)

# What `optimizer.params` may change between two starts of one run, beside the learning rate, which is the schedule's.
GROUP_KEYS = ("betas", "eps", "weight_decay")


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices (embeddings included); leave vectors alone, since norms and biases have no scale to regularise.

    A stage without vectors (or without matrices) gets one group: an empty one has no flat buffer to shard.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    matrices = [parameter for parameter in wanted if parameter.ndim >= 2]
    vectors = [parameter for parameter in wanted if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def apply_configured(engine: Any, optimizer: Mapping[str, Any]) -> list[str]:
    """Put the configuration's optimizer values, clipping and schedule over those a checkpoint restored.

    DeepSpeed restores betas, decay, clipping and the learning rate from the checkpoint without a word; here the file that
    started the run has the last word, and every difference is returned, to be logged.
    """
    changes = []
    params = optimizer.get("params", {})
    for index, group in enumerate(engine.optimizer.param_groups):
        for key in GROUP_KEYS:
            if key not in params:
                continue
            value = tuple(params[key]) if key == "betas" else params[key]
            if key == "weight_decay" and not group["weight_decay"]:
                continue  # The vectors' group.
            before = tuple(group[key]) if key == "betas" else group[key]
            if before != value:
                changes.append(f"optimizer.params.{key} of group {index}: {before} -> {value}")
                group[key] = value
    clipping = engine.gradient_clipping()
    if getattr(engine.optimizer, "clip_grad", clipping) != clipping:
        changes.append(f"gradient_clipping: {engine.optimizer.clip_grad} -> {clipping}")
        engine.optimizer.clip_grad = clipping
    return changes + _apply_schedule(engine, params.get("lr"))


def _apply_schedule(engine: Any, configured_lr: float | None) -> list[str]:
    groups = engine.optimizer.param_groups
    before = groups[0]["lr"]
    if engine.lr_scheduler is not None:
        after = engine.lr_scheduler.get_lr()[0]
        for group, lr in zip(groups, engine.lr_scheduler.get_lr(), strict=True):
            group["lr"] = lr
        engine.lr_scheduler._last_lr = [group["lr"] for group in groups]
    elif configured_lr is not None:
        after = configured_lr
        for group in groups:
            group["lr"] = configured_lr
    else:
        return []
    return [] if before == after else [f"learning rate: {before:.6g} -> {after:.6g}"]
