"""A CPU that a rank takes for the one XPU that it sees: what runs only on devices runs, on tensors of a CPU.

It knows one index, as where srun or a wrapper of mpiexec shows each rank a device of its own. No kernel and no queue of a device is tried.
"""

import os
import time
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

MIB = 1 << 20
RNG_STATE = torch.arange(16, dtype=torch.uint8)


class Event:
    """A moment on the host's clock."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.seconds = 0.0

    def record(self, stream: object = None) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, end: "Event") -> float:
        return 1000 * (end.seconds - self.seconds)


class OneDevice(CPU_Accelerator):
    """What is timed between two waits for the device takes a lot of memory, and all else 3 MiB."""

    Event = Event
    peak = 3 * MIB

    def is_synchronized_device(self) -> bool:
        return False

    def device_name(self, device_index: int | None = None) -> str:
        return "xpu" if device_index is None else self._existing(device_index)

    def device(self, device_index: int | None = None) -> torch.device:
        return torch.device(self._existing(device_index or 0))

    def set_device(self, device_index: int) -> None:
        self._existing(device_index)

    def current_device(self) -> int:
        return 0

    def current_device_name(self) -> str:
        return "cpu:0"

    def device_count(self) -> int:
        return 1

    def synchronize(self, device_index: int | None = None) -> None:
        self.peak = 1024 * MIB

    def communication_backend_name(self) -> str:
        return "gloo"

    def get_rng_state(self, device_index: int | None = None) -> torch.Tensor:
        return RNG_STATE.clone()

    def set_rng_state(self, new_state: torch.Tensor, device_index: int | None = None) -> None:
        assert torch.equal(new_state, RNG_STATE)

    def max_memory_allocated(self, device_index: int | None = None) -> int:
        return self.peak

    def reset_peak_memory_stats(self, device_index: int | None = None) -> None:
        self.peak = 3 * MIB

    def _existing(self, device_index: int) -> str:
        if device_index != 0:
            raise RuntimeError(f"The device index is out of range. It must be in [0, 1), but got {device_index}.")
        return "cpu:0"


def install(mask: str) -> None:
    """From now on this process has one XPU, and the environment of Open MPI's `mpiexec` and of a wrapper that sets ZE_AFFINITY_MASK."""
    from training.run import meter

    xpu: Any = torch.xpu
    xpu.is_available, xpu.device_count = (lambda: True), (lambda: 1)
    xpu.get_device_properties = lambda: SimpleNamespace(has_fp64=True)
    meter.DEVICE_SIZES = (64, 64)
    deepspeed.ops._probe_compatible_ops = _refuse
    set_accelerator(OneDevice())
    os.environ |= {"DS_ACCELERATOR": "xpu", "ZE_AFFINITY_MASK": mask, "OMPI_COMM_WORLD_LOCAL_RANK": os.environ["LOCAL_RANK"]}


def _refuse() -> None:
    raise RuntimeError("a compiler would run on every rank")
