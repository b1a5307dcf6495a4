"""bf16 or fp32: which of them this machine is made for.

On accelerators it is a property of the device. On a CPU it is measured: some processors multiply bf16 matrices four times faster than
fp32 ones, others a hundred times slower, and asking torch or oneDNN for their features does not tell which (an AVX-512 processor
without bf16 instructions reports support and emulates it).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from model.hardware.devices import has_bf16

Setting = bool | Literal["auto"]

SIZE = 256
SECONDS = 0.1
# `"enabled": true` is obeyed wherever it works; from here on it is worth a warning.
SLOW_RATIO = 2.0


@dataclass(frozen=True)
class Precision:
    """What weights and products are in. `reason` is the rest of a sentence that begins with the name."""

    bf16: bool
    reason: str
    warning: str | None = None

    @property
    def name(self) -> str:
        """As the manifest of a checkpoint says it."""
        return "bf16" if self.bf16 else "fp32"

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return torch.bfloat16 if self.bf16 else torch.float32

    def __str__(self) -> str:
        """One line for the log."""
        return f"precision: {self.name}, {self.reason}"


@dataclass(frozen=True)
class Speeds:
    """GFLOP/s of a product of two SIZE x SIZE matrices with this process's threads."""

    fp32: float
    bf16: float

    def __str__(self) -> str:
        """Both figures."""
        return f"{SIZE} x {SIZE} products run at {_short(self.bf16)} GFLOP/s in bf16 and {_short(self.fp32)} in fp32"


def choose_precision(setting: Setting, kind: str, saved: str | None = None) -> Precision:
    """Decide what to compute in on a device of this kind.

    Args:
        setting: `bf16.enabled`. `true` and `false` are obeyed.
        kind: From `devices.find_devices`.
        saved: The name of the precision that a checkpoint to be resumed was trained in; "auto" keeps it.
    """
    wanted = setting if isinstance(setting, bool) else {None: None, "bf16": True, "fp32": False}[saved]
    why = "as bf16.enabled says" if isinstance(setting, bool) else "as the run was started"
    if kind != "cpu":
        fits = has_bf16(kind)
        if wanted is None:
            return Precision(fits, f"which this {kind} device {'has' if fits else 'takes instead of bf16, which it does not have'}")
        return Precision(wanted, why, _warn(f"this {kind} device emulates it", saved) if wanted and not fits else None)
    if wanted is False:
        return Precision(False, why)
    speeds = measure_products()
    if wanted is None:
        return Precision(speeds.bf16 >= speeds.fp32, f"because {speeds}")
    slow = speeds.bf16 * SLOW_RATIO < speeds.fp32
    return Precision(
        True,
        f"{why}; {speeds}",
        _warn(f"its products take {speeds.fp32 / speeds.bf16:.0f} times as long as fp32's", saved) if slow else None,
    )


def measure_products() -> Speeds:
    """Time both kinds of products for a moment, in turns; the best of each counts."""
    factors = [torch.ones(SIZE, SIZE, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    # The first round warms up, and counts only where one product is already slow.
    return Speeds(*(flops / 1e9 for flops in product_flops(factors, SECONDS, rounds=2)))


def product_flops(
    factors: Sequence[torch.Tensor], seconds: float, rounds: int = 1, synchronize: Callable[[], None] = lambda: None
) -> list[float]:
    """Operations per second of each square matrix times itself: the best of some rounds, at least so many and for so long, in turns."""
    best, done, begin = [float("inf")] * len(factors), 0, time.perf_counter()
    while done < rounds or time.perf_counter() - begin < seconds:
        for index, factor in enumerate(factors):
            synchronize()
            start = time.perf_counter()
            factor @ factor
            synchronize()
            best[index] = min(best[index], time.perf_counter() - start)
        done += 1
    return [2 * len(factor) ** 3 / taken for factor, taken in zip(factors, best, strict=True)]


def _warn(fact: str, saved: str | None) -> str:
    kept = "the run was started in it" if saved else "bf16.enabled is true"
    return f"bf16 is slow here: {fact}. It is used because {kept}; bf16.enabled=false trains in fp32."


def _short(gflops: float) -> str:
    return f"{gflops:.0f}" if gflops >= 10 else f"{gflops:.1f}"
