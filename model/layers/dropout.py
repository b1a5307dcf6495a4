"""Dropout that does not cost more than the layer it regularises.

PyTorch's own draws one number per element on CPU: on the attention weights of a small model that takes longer than the attention.
"""

import torch
from torch import Tensor
from torch.nn import functional


def dropout(values: Tensor, ratio: float, training: bool) -> Tensor:
    """Zero each element with probability `ratio` and scale the others by 1 / (1 - ratio), in training only.

    Random numbers come from PyTorch's generator of the device, so its saved state repeats the masks.
    """
    if not training or ratio == 0:
        return values
    if values.device.type != "cpu":
        return functional.dropout(values, ratio)
    kept = (_random_int16(values.shape) >= round(ratio * 65536) - 32768).to(values.dtype)
    # The number multiplies in fp32; in a bf16 mask 1 / (1 - 0.1) would be 1.109 instead of 1.111.
    return (values * (1 / (1 - ratio))).mul_(kept)


def _random_int16(shape: torch.Size) -> Tensor:
    """Uniform over all 65,536 values, four to each 64-bit draw."""
    count = shape.numel()
    draws = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return draws.view(torch.int16)[:count].view(shape)
