"""What `optimizer.params` and `scheduler.params` may hold, which depends on the type that stands beside them.

As in deepspeed_keys.py these are the keys of DeepSpeed 0.19.8, and of torch's optimizers where it hands them on; a test compares them
with the installed source.
"""

from collections.abc import Iterator, Mapping
from types import GenericAlias
from typing import Any, Literal

from ds_configs.deepspeed_keys import COUNT, NUMBER, Table
from ds_configs.typed import Bounded, Refused

# Shares of what was: 1 would never forget, and above 1 the averages grow without bound.
_DECAY = Bounded(float, 0, 1, exclusive=True)
_BETAS = GenericAlias(tuple, (_DECAY, _DECAY))
# Of the peak learning rate.
_RATIO = Bounded(float, 0, 1)

_CLIP = Refused('clipping is written once, as "gradient_clipping". Use that.')
_FUSED = Refused("torch's Adam does not have it, and DeepSpeed's takes its default. Remove it.")
_ADAM: Table = {"lr": NUMBER, "betas": _BETAS, "eps": NUMBER, "weight_decay": NUMBER, "amsgrad": bool, "max_grad_norm": _CLIP}
_ADAM_ANY: Table = {
    **_ADAM,
    "torch_adam": bool,
    "adam_w_mode": bool,
    "fp32_optimizer_states": Refused("it is for states on the CPU; here they are always fp32. Remove it."),
    # torch's (torch_adam true)
    "foreach": bool,
    "fused": bool,
    "maximize": bool,
    "capturable": Refused("it is for CUDA graphs, which a pipeline does not use. Remove it."),
    "differentiable": Refused("nothing here differentiates through a step. Remove it."),
    # DeepSpeed's own, compiled at start (torch_adam false)
    "bias_correction": _FUSED,
    "set_grad_none": _FUSED,
}

# Which DeepSpeed's own Adam fails on; Muon with it ignores them.
_TORCH = ("foreach", "fused", "maximize", "amsgrad")

# By optimizer.type. DeepSpeed reads most of these names in any case; one spelling each is enough here.
OPTIMIZERS: dict[str, Table | Refused] = {
    "AdamW": {
        **_ADAM_ANY,
        "adam_w_mode": Refused('AdamW never adds the decay to the gradient. For that use type "Adam" and adam_w_mode false.'),
    },
    "Adam": _ADAM_ANY,
    "Lamb": Refused("it scales a step by the norm of a whole matrix, and replicas hold pieces of flat ones. Use AdamW or Muon."),
    "Lion": Refused("DeepSpeed has it as a compiled CUDA operator only. Use AdamW or Muon."),
    "Adagrad": Refused("torch makes its state before the weights are sharded, and the first checkpoint fails on it. Use AdamW or Muon."),
    "Muon": {
        "lr": NUMBER,
        "muon_lr": NUMBER,
        "adam_lr": NUMBER,
        "momentum": _DECAY,
        "betas": _BETAS,
        "eps": NUMBER,
        "weight_decay": NUMBER,
        "torch_adam": bool,
        "adam_w_mode": bool,
        "foreach": bool,
        "ns_method": Refused("the products of the iteration run in the precision of the run. Remove it."),
        "per_head_muon": Refused("a block's query, key and value matrices are updated as one. Remove it."),
        "max_grad_norm": _CLIP,
    },
    "SGD": {
        "lr": NUMBER,
        "momentum": _DECAY,
        "dampening": float,
        "weight_decay": NUMBER,
        "nesterov": bool,
        "maximize": bool,
        "foreach": bool,
        "max_grad_norm": _CLIP,
    },
}

_DERIVED = Refused("it is derived from the run's length (training.steps, epochs or tokens). Remove it.")
_RESUMED = Refused("a resume sets it. Remove it.")
_WARMUP: Table = {"warmup_num_steps": COUNT, "warmup_type": Literal["linear", "log"], "last_batch_iteration": _RESUMED}
_WARMUP_LR: Table = {**_WARMUP, "warmup_min_lr": NUMBER, "warmup_max_lr": NUMBER}

# By scheduler.type, which DeepSpeed compares exactly.
SCHEDULERS: dict[str, Table] = {
    "WarmupCosineLR": {**_WARMUP, "total_num_steps": _DERIVED, "warmup_min_ratio": _RATIO, "cos_min_ratio": _RATIO},
    "WarmupDecayLR": {**_WARMUP_LR, "total_num_steps": _DERIVED},
    "WarmupLR": _WARMUP_LR,
    "LRRangeTest": {
        "lr_range_test_min_lr": NUMBER,
        "lr_range_test_step_size": COUNT,
        "lr_range_test_step_rate": float,
        "lr_range_test_staircase": bool,
        "last_batch_iteration": _RESUMED,
    },
    "OneCycle": {
        "cycle_min_lr": NUMBER,
        "cycle_max_lr": NUMBER,
        "decay_lr_rate": float,
        "cycle_first_step_size": COUNT,
        "cycle_second_step_size": COUNT,
        "cycle_first_stair_count": int,
        "cycle_second_stair_count": int,
        "decay_step_size": int,
        "cycle_momentum": bool,
        "cycle_min_mom": _DECAY,
        "cycle_max_mom": _DECAY,
        "decay_mom_rate": float,
        "last_batch_iteration": _RESUMED,
    },
}

_ASCENDING = (("warmup_min_lr", "warmup_max_lr"), ("cycle_min_lr", "cycle_max_lr"), ("cycle_min_mom", "cycle_max_mom"))


def compiles_adam(optimizer: Mapping[str, Any]) -> bool:
    """Whether an `optimizer` section takes DeepSpeed's own Adam, which is compiled at the first start on every host, and not torch's."""
    return optimizer["type"] in ("AdamW", "Adam", "Muon") and not optimizer.get("params", {}).get("torch_adam")


def contradictions(section: str, entry: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, what is wrong) of well-typed parameters that contradict each other, or of one that is missing.

    `section` is optimizer or scheduler.
    """
    params = entry.get("params", {})
    for needed in ("cycle_min_lr", "cycle_max_lr") if entry["type"] == "OneCycle" else ():
        if needed not in params:
            yield section, f"{section}.params.{needed} is missing; OneCycle has no default for it."
    if compiles_adam(entry):
        for key in [key for key in _TORCH if key in params and (key, params[key]) != ("amsgrad", False)]:
            yield f"{section}.params.{key}", f"{section}.params.{key} is torch's and needs torch_adam = true. Set that, or remove it."
    if params.get("foreach") and params.get("fused"):
        yield f"{section}.params.fused", f"{section}.params.foreach and fused cannot both be true. Remove one of them."
    restless = entry["type"] == "SGD" and (not params.get("momentum") or params.get("dampening"))
    if restless and params.get("nesterov"):
        yield f"{section}.params.nesterov", f"{section}.params.nesterov = true needs a momentum above 0 and no dampening."
    for low, high in _ASCENDING:
        if low in params and high in params and params[low] > params[high]:
            yield f"{section}.params.{low}", f"{section}.params.{low} = {params[low]} is above {high} = {params[high]}. Swap them."
