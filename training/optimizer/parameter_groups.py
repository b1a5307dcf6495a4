"""Which parameters the optimizer treats how, and what of the optimizer a resumed run takes from the configuration."""

from __future__ import annotations

from typing import Any

from torch import nn

from model.layers.attention import Attention
from model.layers.mlp import MLP, GatedMLP

# Of a parameter group, what is not a setting: the weights themselves, and what the schedule drives or derives.
NOT_SETTINGS = ("params", "lr", "initial_lr")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices (embeddings included); leave vectors alone, since norms and biases have no scale to regularise.

    Each parameter is also told whether it is one of Muon's: the matrices inside the blocks. Embeddings, positions and the head are tables
    with a row a token, which Adam suits better. DeepSpeed splits the groups by that mark if the optimizer is Muon.

    A stage without vectors (or without matrices) gets one group: an empty one has no flat buffer to shard.
    """
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    halves = [layer for layer in module.modules() if isinstance(layer, Attention | MLP | GatedMLP)]
    inside = {id(parameter) for layer in halves for parameter in layer.parameters() if parameter.ndim == 2}
    for parameter in wanted:
        parameter.use_muon = id(parameter) in inside  # type: ignore[attr-defined]
    matrices = [parameter for parameter in wanted if parameter.ndim >= 2]
    vectors = [parameter for parameter in wanted if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def apply_configured(engine: Any) -> list[str]:
    """Put the configuration's optimizer values, clipping and schedule over those that a checkpoint has just restored.

    DeepSpeed restores all of them from the checkpoint without a word; here the file that started the run has the last word, and every
    difference is returned, to be logged.
    """
    changes = []
    for index, (group, configured) in enumerate(zip(engine.optimizer.param_groups, engine.settings, strict=True)):
        for key, value in configured.items():
            before = group.get(key)
            same = (tuple(before) if isinstance(before, list) else before) == (tuple(value) if isinstance(value, list) else value)
            if not same and key != "ns_method":  # It follows the precision, whose change is said.
                changes.append(f"optimizer.params.{key} of group {index}: {before} -> {value}")
            group[key] = value
    clipping = engine.gradient_clipping()
    if engine.optimizer.clip_grad != clipping:
        changes.append(f"gradient_clipping: {engine.optimizer.clip_grad} -> {clipping}")
        engine.optimizer.clip_grad = clipping
    return changes + _apply_schedule(engine)


def _apply_schedule(engine: Any) -> list[str]:
    groups, params = engine.optimizer.param_groups, engine.optimizer_params() or {}
    before = [group["lr"] for group in groups]
    if engine.lr_scheduler is not None:
        after = list(engine.lr_scheduler.get_lr())
        engine.lr_scheduler._last_lr = list(after)
    else:
        after = [params.get("muon_lr" if group.get("use_muon") else "adam_lr", params.get("lr")) for group in groups]
    changes = []
    for group, old, new in zip(groups, before, after, strict=True):
        if new is not None and old != new:
            group["lr"] = new
            changes.append(f"learning rate: {old:.6g} -> {new:.6g}")
    return list(dict.fromkeys(changes))  # Groups mostly share it.
