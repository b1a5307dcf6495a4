"""Muon: momentum whose matrices are made orthogonal before they are applied (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

DeepSpeed's own Muon splits momentum over replicas and exchanges the pieces of matrices that lie across them; that is kept. Its arithmetic
is replaced by `update_of`, because DeepSpeed 0.19.8 compiles its own at the first step, runs it in fp16 or bf16 on every CPU, and scales
updates in a way that needs a learning rate of its own.
"""

import math

import torch
from deepspeed.runtime import compiler
from torch import Tensor

# Of the quintic iteration, chosen for a steep slope at zero (Jordan et al.; torch.optim.Muon has the same).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPSILON = 1e-7
# The root mean square of AdamW's updates, which those of a matrix are scaled to (Liu et al. 2025, "Muon is Scalable for LLM Training").
ADAMW_RMS = 0.2

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def orthogonalize(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest matrix with orthogonal rows or columns, roughly: singular values come out between 0.7 and 1.2.

    Args:
        matrix: (rows, columns), fp32.
        dtype: Of the products; the result has it too.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.to(dtype)
    if matrix.shape[0] > matrix.shape[1]:
        wide = wide.T
    wide = wide / wide.norm().clamp(min=EPSILON)
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


def update_of(gradient: Tensor, momentum: Tensor, beta: float = 0.95, ns_method: str = "fp32") -> Tensor:
    """One matrix's update, to be multiplied by the learning rate; in the place of DeepSpeed's `muon_update`.

    Args:
        gradient: (rows, columns), fp32, summed, averaged and clipped.
        momentum: Of the same shape; updated in place.
        beta: The momentum's share of the past.
        ns_method: Where DeepSpeed names a method, the precision of the products: "bf16" or "fp32".
    """
    momentum.lerp_(gradient, 1 - beta)
    ahead = gradient.lerp(momentum, beta)  # Nesterov's
    scale = ADAMW_RMS * math.sqrt(max(gradient.shape))
    return orthogonalize(ahead, DTYPES[ns_method]).to(gradient.dtype) * scale


def patch_deepspeed() -> None:
    """Give DeepSpeed's Muon `update_of`, and keep it from compiling what is no longer called (1.8 s at every start)."""
    compile_, compiler.compile = compiler.compile, lambda: lambda function: function
    try:
        from deepspeed.runtime.zero.muon import original_muon
    finally:
        compiler.compile = compile_
    original_muon.muon_update = update_of
