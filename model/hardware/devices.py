"""What there is to compute on here. Names of kinds of devices are written in this file and nowhere else in the project."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from model.hardware.processors import usable_processors

# In the order in which DeepSpeed looks for them too. Each is also the name of a module of torch; behind it the variable that hides devices.
ACCELERATORS = {"xpu": "ZE_AFFINITY_MASK", "cuda": "CUDA_VISIBLE_DEVICES"}
CHOICE = "DS_ACCELERATOR"
TILES_OR_CARDS = {"xpu": "ZE_FLAT_DEVICE_HIERARCHY"}
"""Of kinds whose cards may have two tiles: the variable that says whether a tile or a card is a device."""


@dataclass(frozen=True)
class Devices:
    """`count` devices of one kind: accelerators, or the cores of a CPU."""

    kind: str
    count: int

    @property
    def is_cpu(self) -> bool:
        """True where ranks share cores instead of having a device each."""
        return self.kind == "cpu"

    def __str__(self) -> str:
        """In words."""
        noun = "core" if self.is_cpu else f"{self.kind} device"
        return f"{self.count} {noun}{'' if self.count == 1 else 's'}"


def find_devices(environment: Mapping[str, str] = os.environ) -> Devices:
    """The accelerators of this machine, or its cores if it has none or DS_ACCELERATOR says "cpu".

    Raises:
        ValueError: If DS_ACCELERATOR asks for a kind that torch does not see here.
    """
    wanted = environment.get(CHOICE)
    if wanted is not None and wanted not in (*ACCELERATORS, "cpu"):
        raise ValueError(f'{CHOICE} = "{wanted}"; this project runs on {", ".join(ACCELERATORS)} or cpu. Set one of these, or unset it.')
    for kind in ACCELERATORS:
        if wanted in (None, kind) and (count := _count(kind)):
            return Devices(kind, count)
    if wanted in ACCELERATORS:
        raise ValueError(f"{CHOICE} = {wanted}, but torch {torch.__version__} sees no such device here. Unset it, or install that build.")
    return Devices("cpu", usable_processors())


def has_bf16(kind: str) -> bool:
    """Whether an accelerator of this kind multiplies bf16 matrices itself, instead of emulating it. Of an XPU it is taken for granted."""
    # torch asks an offline compiler of Intel's, and where that is not installed or too old, devices that are made for bf16 have none.
    return kind == "xpu" or torch.cuda.is_bf16_supported(including_emulation=False)


def _count(kind: str) -> int:
    module = getattr(torch, kind, None)
    return int(module.device_count()) if module is not None and module.is_available() else 0


def has_fp64(kind: str) -> bool:
    """Whether devices of this kind know fp64; a few of Intel's consumer GPUs do not."""
    return kind != "xpu" or bool(getattr(torch.xpu.get_device_properties(), "has_fp64", False))
