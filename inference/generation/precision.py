"""What the weights are held in while text is written. Torch is imported only where something is measured."""

from __future__ import annotations

from typing import Literal

DTYPES = ("fp32", "bf16", "fp16", "int8")


def choose_dtype(wanted: str, num_processes: int = 1) -> tuple[str, str]:
    """The precision to load a model in, and why: the rest of a sentence that begins with its name.

    "auto" takes bf16 or fp32 by `model.hardware.precision`, as a run does. It never takes int8: on a CPU that is the fastest by far, but
    its activations are rounded with one scale for a whole batch, so that the text of a prompt would depend on the prompts beside it.

    Args:
        wanted: One of DTYPES, or "auto".
        num_processes: Several must agree, so on a CPU they do not measure.
    """
    if wanted != "auto":
        return wanted, "as --dtype says"
    from model.hardware.devices import find_devices
    from model.hardware.precision import choose_precision

    devices = find_devices()
    if num_processes > 1 and devices.is_cpu:
        return "fp32", "which several processes on a CPU use unless --dtype says otherwise"
    setting: Literal["auto"] = "auto"
    precision = choose_precision(setting, devices.kind)
    return precision.name, precision.reason
