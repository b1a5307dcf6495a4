"""Which parameters the optimizer treats how, and what of the optimizer a resumed run takes from the configuration."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from model.layers.attention import Attention
from model.layers.mlp import MLP, GatedMLP

# Of a parameter group, what is not a setting: weights, its name on this stage, what the schedule derives, what follows the precision.
NOT_SETTINGS = {"params", "name", "initial_lr", "ns_method"}
SAID_AS = {"clip_grad": "gradient_clipping", "lr": "learning rate"}


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


def follow_schedule(engine: Any, saved: Sequence[Mapping[str, Any]]) -> list[str]:
    """Set what the schedule sets (rates, and betas of a OneCycle) to what it says at the engine's step; the rest is the configuration's.

    Args:
        engine: At the step of a checkpoint.
        saved: The settings in that checkpoint of each group, and its `clip_grad`; empty where this rank has nothing of a group.

    Returns:
        What the configuration says otherwise than the checkpoint did, to be logged.
    """
    groups = engine.optimizer.param_groups
    if engine.lr_scheduler is not None:
        engine.lr_scheduler.step(engine.lr_scheduler.last_batch_iteration)
    changes = []
    for index, (group, before) in enumerate(zip(groups, saved, strict=True)):
        now = {**group, "clip_grad": engine.optimizer.clip_grad}
        for key in sorted(before.keys() & now.keys() - NOT_SETTINGS):
            was, becomes = before[key], now[key]
            if key == "lr":
                was, becomes = f"{was:.6g}", f"{becomes:.6g}"
            if was != becomes and not (isinstance(was, list | tuple) and list(was) == list(becomes)):
                changes.append(f"{SAID_AS.get(key, f'optimizer.params.{key} of group {index}')}: {was} -> {becomes}")
    return list(dict.fromkeys(changes))  # Groups mostly share them.
