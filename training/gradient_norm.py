"""The global gradient norm, the same to the last bit however the model is cut into stages.

DeepSpeed 0.19.8 adds the squares of a stage's tensors in fp32 and then adds the stages: another cut is another order of additions,
another last bit in the clipping factor, and from there losses that drift apart. In fp64 the order no longer shows. It also stops on
a stage whose only matrix is counted by another one (a tied head alone on the last stage), which is nothing to add.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import deepspeed.runtime.bf16_optimizer as bf16_optimizer
import torch
from deepspeed import comm as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.utils import mask_nan_or_inf_with_val_inplace
from torch import Tensor


def install() -> None:
    """Put this norm in the place of the bf16 optimizer's. Remove when DeepSpeed's own is independent of the order."""
    bf16_optimizer.get_global_norm_of_tensors = global_norm


def global_norm(input_tensors: Sequence[Tensor], norm_type: float = 2, mpu: Any = None, moe_ep_group: Any = None) -> Tensor:
    """The 2-norm over all stages as an fp32 scalar; -1 if it is not finite, which DeepSpeed takes for "skip this step"."""
    assert norm_type == 2, "the bf16 optimizer is built with the 2-norm"
    assert moe_ep_group is None, "no experts here"
    device = get_accelerator().current_device_name()
    # A few consumer GPUs have no fp64; there the last bit depends on the partition, as it does in DeepSpeed.
    precision = torch.float64 if _has_fp64() else torch.float32
    squares = [tensor.detach().float().norm().to(device, precision).square() for tensor in input_tensors]
    total = torch.stack(squares).sum() if squares else torch.zeros((), device=device, dtype=precision)
    if mpu is not None:
        dist.all_reduce(total, group=mpu.get_model_parallel_group())
    norm = total.sqrt().float()
    mask_nan_or_inf_with_val_inplace(norm, device=norm.device)
    return norm


def _has_fp64() -> bool:
    return get_accelerator().device_name() != "xpu" or bool(getattr(torch.xpu.get_device_properties(), "has_fp64", False))
