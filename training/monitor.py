"""What a run tells: meters, one log line an interval, TensorBoard, the progress bar.

Losses and norms stay on the device until the interval's end, so reading them costs one wait an interval. Every step's values are
kept in `metrics.jsonl`, the file that figures and comparisons are made from.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from deepspeed import comm as dist
from deepspeed.accelerator import get_accelerator

from model.flops import flops_per_token
from training.config import RunConfig
from training.distributed import Ranks

log = logging.getLogger(__name__)

GIB = 1 << 30


class NonFiniteError(RuntimeError):
    """A loss or gradient norm was infinite or not a number."""


class Meter:
    """Collects one interval of steps. `read` is collective: every rank calls it at the same step."""

    def __init__(self, config: RunConfig, ranks: Ranks, peak_flops_per_device: float) -> None:
        self._config = config
        self._ranks = ranks
        self._flops_per_token = flops_per_token(config.model, config.data.seq_length)
        self._peak = peak_flops_per_device * ranks.world.size
        self._losses: list[torch.Tensor] = []
        self._norms: list[Any] = []
        self._lrs: list[float] = []
        self._seconds = 0.0
        self._mark = time.perf_counter()
        self.skipped_before = 0

    def add(self, loss: torch.Tensor, engine: Any, lr: float) -> None:
        """Note one step; nothing is waited for."""
        self._losses.append(loss.detach().clone())
        self._norms.append(engine.get_global_grad_norm())
        self._lrs.append(lr)

    def pause(self) -> None:
        """Evaluation, samples and saves are not training time."""
        self._seconds += time.perf_counter() - self._mark

    def go_on(self) -> None:
        """End a pause."""
        self._mark = time.perf_counter()

    def read(self, engine: Any) -> list[dict[str, float]]:
        """One record for each step since the last read; the last of them also holds speed and memory.

        Raises:
            NonFiniteError: On every rank, if a value is not finite and `training.non_finite` is "stop".
        """
        losses = torch.stack(self._losses).float().cpu().tolist()
        self._seconds += time.perf_counter() - self._mark
        self._mark = time.perf_counter()
        first = engine.global_steps - len(losses) + 1
        records = [
            {
                "step": first + index,
                "train/loss": loss,
                "optim/grad_norm": float(norm if norm is not None else float("nan")),
                "optim/lr": lr,
            }
            for index, (loss, norm, lr) in enumerate(zip(losses, self._norms, self._lrs, strict=True))
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
            **memory_by_stage(self._ranks),
        }
        self._losses, self._norms, self._lrs, self._seconds = [], [], [], 0.0
        return records

    def _check_finite(self, records: list[dict[str, float]], engine: Any) -> None:
        bad = [record for record in records if not all(abs(record[name]) < float("inf") for name in ("train/loss", "optim/grad_norm"))]
        if not bad:
            return
        record = bad[0]
        size = self._config.batch.train_batch_size
        end = engine.global_samples - (engine.global_steps - int(record["step"])) * size
        line = (
            f"step {record['step']}: loss {record['train/loss']:.4g}, gradient norm {record['optim/grad_norm']:.4g} "
            f"on samples {end - size} to {end - 1}; {engine.skipped_steps} steps skipped so far"
        )
        if self._config.training.non_finite == "stop":
            raise NonFiniteError(f'{line}. Lower optimizer.params.lr, look at those samples, or set training.non_finite to "skip".')
        if self._ranks.is_first:
            log.warning("%s; the optimizer left the weights as they were, going on (training.non_finite = skip).", line)


def memory_by_stage(ranks: Ranks) -> dict[str, float]:
    """Peak memory of a stage's hungriest rank in GiB: the accelerator's where there is one, else the process's."""
    accelerator = get_accelerator()
    used = process_peak_bytes() if accelerator.device_name() == "cpu" else accelerator.max_memory_allocated()
    by_rank = torch.zeros(ranks.world.size, device=accelerator.current_device_name())
    by_rank[ranks.world.rank] = used / GIB
    dist.all_reduce(by_rank)
    peaks = by_rank.view(ranks.replicas, ranks.stages).max(dim=0).values.tolist()
    return {f"memory/stage_{stage}_gib": round(peak, 3) for stage, peak in enumerate(peaks)}


def process_peak_bytes() -> int:
    """Highest resident memory of this process so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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
    peak = torch.tensor([max(_product_flops(size, dtype, device) for size in sizes)], device=device)
    dist.all_reduce(peak, op=dist.ReduceOp.MIN)
    return float(peak.item())


def _product_flops(size: int, dtype: torch.dtype, device: str) -> float:
    """Operations per second of a square product, the best of a few rounds; one round where it is slow."""
    accelerator = get_accelerator()
    factor = torch.ones(size, size, dtype=dtype, device=device)
    best, begin = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - begin < PROBE_SECONDS:
        accelerator.synchronize()
        start = time.perf_counter()
        factor @ factor
        accelerator.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


class Writer:
    """Rank 0's outputs: log line, progress bar, `metrics.jsonl`, TensorBoard, and CSV or wandb if the configuration asks."""

    def __init__(self, config: RunConfig, *, last_step: int, start_step: int) -> None:
        from tqdm import tqdm

        self._last_step = last_step
        self._metrics = config.folder / "metrics.jsonl"
        forget_after(self._metrics, start_step)
        self._board = _tensorboard(config, start_step)
        self._wandb = _wandb(config)
        # A bar in a log file is noise: it turns itself off where the output is no terminal.
        self._bar = tqdm(total=last_step, initial=start_step, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty())

    def advance(self, step: int) -> None:
        """Move the bar."""
        self._bar.update(step - self._bar.n)

    def write(self, records: list[dict[str, float]]) -> None:
        """Append records of one or more steps."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
        for record in records:
            step = int(record["step"])
            for tag, value in record.items():
                if tag != "step" and self._board:
                    self._board.add_scalar(tag, value, step)
            if self._wandb:
                self._wandb.log({tag: value for tag, value in record.items() if tag != "step"}, step=step)
        if self._board:
            self._board.flush()

    def line(self, records: list[dict[str, float]]) -> None:
        """The one log line of an interval: the mean loss over it, everything else at its end."""
        last = records[-1]
        loss = sum(record["train/loss"] for record in records) / len(records)
        memory = max(value for tag, value in last.items() if tag.startswith("memory/"))
        self.say(
            f"step {last['step']}/{self._last_step} | loss {loss:.4f} | lr {last['optim/lr']:.2e} | grad {last['optim/grad_norm']:.2f} | "
            f"{_short(last['perf/tokens_per_second'])} tokens/s | {100 * last['perf/mfu']:.0f}% MFU | {memory:.1f} GiB"
        )

    def say(self, message: str) -> None:
        """Log without tearing the bar."""
        self._bar.clear()
        log.info(message)
        self._bar.refresh()

    def text(self, tag: str, text: str, step: int) -> None:
        """Text for TensorBoard."""
        if self._board:
            self._board.add_text(tag, text, step)

    def close(self) -> None:
        """Flush everything."""
        self._bar.close()
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()


def forget_after(metrics: Path, step: int) -> None:
    """Drop records of steps that a resumed run is about to do again."""
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue  # The line a kill cut short.
    metrics.write_text("".join(kept), encoding="utf-8")


def _short(number: float) -> str:
    return f"{number / 1000:.1f}k" if number >= 1000 else f"{number:.0f}"


def _tensorboard(config: RunConfig, start_step: int) -> Any:
    section: Mapping[str, Any] = config.values.get("tensorboard", {})
    if not section.get("enabled", True):
        return None
    from torch.utils.tensorboard import SummaryWriter

    folder = (
        Path(section["output_path"]) / section.get("job_name", config.run.name)
        if section.get("output_path")
        else config.folder / "tensorboard"
    )
    return SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else None)


def _wandb(config: RunConfig) -> Any:
    section: Mapping[str, Any] = config.values.get("wandb", {})
    if not section.get("enabled", False):
        return None
    import wandb  # type: ignore[import-not-found]  # Optional: only a run that asks for it needs it.

    return wandb.init(
        project=section.get("project"), entity=section.get("team"), group=section.get("group"), name=config.run.name, config=config.values
    )
