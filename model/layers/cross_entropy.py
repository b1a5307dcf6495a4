"""Cross-entropy that reads bf16 logits and works in fp32, without an fp32 copy of them all."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of the fp32 working copy: on CPU it should stay in a core's cache, elsewhere few large kernels are better.
_CPU_CHUNK_ELEMENTS = 2**16
_DEVICE_CHUNK_ELEMENTS = 2**28


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats, fp32: the sum over labels that are token ids, divided by B * T.

    Ignored labels count in the divisor, so mean x B * T is the exact total of a padded batch too.

    Args:
        logits: (B, T, V), any floating type; the gradient has the same type.
        labels: (B, T) token ids, a negative number (by convention -100) where nothing is scored.
    """
    return _CrossEntropy.apply(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))


class _CrossEntropy(torch.autograd.Function):
    """Keeps one fp32 number a row (the logarithm of the partition sum) and computes the gradient from it row by row."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        partition = torch.empty(len(labels), dtype=torch.float32, device=logits.device)
        for part in _row_slices(logits):
            torch.logsumexp(logits[part].float(), dim=-1, out=partition[part])
        ctx.save_for_backward(logits, labels, partition)
        scored = labels >= 0
        picked = logits.gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1).float()
        return torch.where(scored, partition - picked, 0.0).sum() / len(labels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        logits, labels, partition = ctx.saved_tensors
        scale = torch.where(labels >= 0, upstream / len(labels), 0.0)  # (B * T,)
        target = labels.clamp(min=0).unsqueeze(1)
        gradient = torch.empty_like(logits)
        for part in _row_slices(logits):
            share = (logits[part].float() - partition[part].unsqueeze(1)).exp_().mul_(scale[part].unsqueeze(1))
            share.scatter_add_(1, target[part], -scale[part].unsqueeze(1))
            gradient[part] = share
        return gradient, None


def _row_slices(logits: Tensor) -> list[slice]:
    """Slices of rows whose fp32 copies are of a good size for the device."""
    elements = _CPU_CHUNK_ELEMENTS if logits.device.type == "cpu" else _DEVICE_CHUNK_ELEMENTS
    rows = max(1, elements // logits.shape[1])
    return [slice(start, start + rows) for start in range(0, len(logits), rows)]
