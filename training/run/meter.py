"""What a run measures: loss, gradient norm, speed and memory of every step. Where the values go is `outputs.py`.

Losses and norms stay on the device until the interval's end, so reading them costs one wait an interval.
"""

import logging
import math
import os
import resource
import time
from pathlib import Path
from typing import Any

import torch
from deepspeed import comm as dist
from deepspeed.accelerator import get_accelerator

from model.flops import flops_per_token
from model.hardware.precision import product_flops
from training.config import RunConfig
from training.health.spikes import Spikes
from training.health.stage_clock import pipeline_figures
from training.launch.process_group import Ranks, by_rank
from training.run.failure import RunError

log = logging.getLogger(__name__)

GIB = 1 << 30


class Meter:
    """Collects one interval of steps. `read` is collective: every rank calls it at the same step."""

    def __init__(self, config: RunConfig, ranks: Ranks, spikes: Spikes, libraries_bytes: int) -> None:
        """Collective too, if the peak of the devices has to be measured. `libraries_bytes` are not counted as memory of the run."""
        self._config = config
        self._libraries_bytes = libraries_bytes
        self._ranks = ranks
        self._spikes = spikes
        self._flops_per_token = flops_per_token(config.model, config.data.seq_length)
        self._peak = peak_flops(config.training.peak_tflops_per_device, config.uses_bf16) * ranks.world.size
        self._steps: list[tuple[torch.Tensor, Any, float, bool]] = []
        """Of each: loss, gradient norm, learning rate, and whether the optimizer took it."""
        self._seconds = 0.0
        self._mark = time.perf_counter()

    def add(self, loss: torch.Tensor, engine: Any, lr: float) -> None:
        """Note one step; nothing is waited for."""
        self._steps.append((loss.detach().clone(), engine.get_global_grad_norm(), lr, engine.was_step_applied()))

    def pause(self) -> None:
        """Evaluation, samples and saves are not training time."""
        self._seconds += time.perf_counter() - self._mark

    def go_on(self) -> None:
        """End a pause."""
        self._mark = time.perf_counter()

    def read(self, engine: Any) -> list[dict[str, float]]:
        """One record for each step since the last read; the last of them also holds speed and memory.

        Raises:
            RunError: On every rank, if a value is not finite and `training.non_finite` is "stop" or the optimizer used it.
        """
        losses = torch.stack([loss for loss, *_ in self._steps]).float().cpu().tolist()
        self.pause()
        self.go_on()
        first = engine.global_steps - len(losses) + 1
        records = [
            {"step": first + index, "train/loss": loss, "optim/grad_norm": float(norm), "optim/lr": lr}
            for index, (loss, (_, norm, lr, _)) in enumerate(zip(losses, self._steps, strict=True))
        ]
        self._check_finite(records, engine)
        tokens = len(losses) * self._config.tokens_per_step
        tokens_per_second = tokens / max(self._seconds, 1e-9)
        records[-1] |= {
            "train/tokens": engine.global_samples * self._config.data.seq_length,
            "train/skipped_steps": engine.skipped_steps,
            "perf/tokens_per_second": tokens_per_second,
            "perf/seconds_per_step": self._seconds / len(losses),
            "perf/mfu": tokens_per_second * self._flops_per_token / self._peak,
            **memory_by_stage(self._ranks, self._libraries_bytes),
            **pipeline_figures(by_rank(torch.tensor(engine.clock.read()), self._ranks).numpy()),
        }
        if self._spikes.config:
            left_out = sum(end - first for first, end in self._spikes.skipped)
            records[-1] |= {"train/rewinds": self._spikes.rewinds, "train/samples_left_out": left_out}
        self._steps, self._seconds = [], 0.0
        return records

    def _check_finite(self, records: list[dict[str, float]], engine: Any) -> None:
        bad = [
            (record, applied)
            for record, (*_, applied) in zip(records, self._steps, strict=True)
            if not (math.isfinite(record["train/loss"]) and math.isfinite(record["optim/grad_norm"]))
        ]
        if not bad:
            return
        record, _ = bad[0]
        first, last = self._spikes.samples_of(int(record["step"]), engine, self._config.batch.train_batch_size)
        line = (
            f"step {record['step']}: loss {record['train/loss']:.4g}, gradient norm {record['optim/grad_norm']:.4g} "
            f"on samples {first} to {last}; {engine.skipped_steps} steps skipped so far"
        )
        if self._config.training.non_finite == "stop":
            raise RunError(f'{line}. Lower optimizer.params.lr, look at those samples, or set training.non_finite to "skip".')
        if any(applied for _, applied in bad):
            raise RunError(f"{line}. The optimizer took the step all the same, so the weights are lost; the last checkpoint is not.")
        if self._ranks.is_first:
            log.warning("%s; the optimizer left the weights as they were, going on (training.non_finite = skip).", line)


def memory_by_stage(ranks: Ranks, libraries_bytes: int) -> dict[str, float]:
    """Peak memory of a stage's hungriest rank in GiB, the accelerator's where there is one, else the process's; and without libraries."""
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    else:
        used, libraries_bytes = accelerator.max_memory_allocated(), 0
    peaks = by_rank(torch.tensor([used / GIB, (used - libraries_bytes) / GIB]), ranks).max(dim=0).values.tolist()
    figures = {f"memory/stage_{stage}_gib": round(whole, 3) for stage, (whole, _) in enumerate(peaks)}
    return figures | {f"memory/stage_{stage}_run_gib": round(run, 3) for stage, (_, run) in enumerate(peaks)}


def resident_bytes() -> int:
    """Memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


# Sizes of square products, one of which runs at a device's best; on a CPU it should fit into a core's cache, or just not.
CPU_SIZES = (256, 512, 1024)
DEVICE_SIZES = (4096, 8192)
PROBE_SECONDS = 0.3


def peak_flops(configured_tflops: float | None, bf16: bool) -> float:
    """Floating-point operations per second of a device that MFU is held against.

    The configured peak (a data sheet's number is what the field quotes), else the fastest of some matrix products in the precision of
    the run, on the slowest rank: no run can do better than that, so the ratio stays below 1.
    """
    if configured_tflops is not None:
        return configured_tflops * 1e12
    accelerator = get_accelerator()
    device, dtype = accelerator.current_device_name(), torch.bfloat16 if bf16 else torch.float32
    sizes = CPU_SIZES if accelerator.device_name() == "cpu" else DEVICE_SIZES
    factors = (torch.ones(size, size, dtype=dtype, device=device) for size in sizes)
    reached = (product_flops([factor], PROBE_SECONDS, synchronize=accelerator.synchronize)[0] for factor in factors)
    peak = torch.tensor([max(reached)], device=device)
    dist.all_reduce(peak, op=dist.ReduceOp.MIN)
    accelerator.reset_peak_memory_stats()  # What the products took, up to 0.8 GiB, is none of the run's.
    return float(peak.item())
