"""The plan for this machine, by measurement, and how a run that was trained here compares with it."""

from __future__ import annotations

import json
import statistics
from itertools import pairwise
from pathlib import Path

import ds_configs
from model.flops import layer_parameters, layer_work
from model.hardware.precision import choose_precision
from model.hardware.processors import usable_processors
from model.partition import balance
from training.checkpoints.find_and_verify import Checkpoint, open_checkpoint, published
from training.config import RunConfig, resolve, with_precision
from training.planning.costs import GIB, Plan, plan_step, recomputed
from training.planning.here import measure


def plan_here(config: RunConfig, checkpoint: Checkpoint | None = None) -> tuple[RunConfig, Plan, list[str]]:
    """Measure this machine's processors and plan a run on them: the run with its precision decided, the plan, and what is said first.

    Args:
        config: The run.
        checkpoint: Of the run as it was trained: its precision and partition are kept; else both are chosen as the run would choose them.
    """
    precision = choose_precision(config.precision, "cpu", checkpoint.precision if checkpoint else None)
    run = with_precision(config, precision.bf16)
    batch, workload = run.batch, run.workload
    layers, per_parameter = measure(run.values["model"], workload, batch.world_size)
    seconds = recomputed(layers, workload)
    if checkpoint:
        parts = checkpoint.manifest["partition"]
    else:
        measured = run.values.get("pipeline", {}).get("partition", "flops") == "measured"
        work = [sum(one) for one in seconds] if measured else layer_work(run.model, workload.seq_length)
        parts = balance(work, batch.stages)
    held = [sum(layer_parameters(run.model)[start:stop]) for start, stop in pairwise(parts)]
    exchange = [per_parameter * parameters / batch.replicas for parameters in held]
    plan = plan_step(run.model, workload, parts, seconds, transfer=0.0, exchange=exchange)
    said = [f"{config.path}: {batch.world_size} processes on this machine's processors, in {precision.name}, {precision.reason}"]
    if batch.world_size > usable_processors():
        said.append(f"they take turns on {usable_processors()} cores; --device plans for devices that are not here")
    return run, plan, [*said, ""]


def compare(folder: Path) -> str:
    """Planned and measured side by side.

    Raises:
        ValueError: If the folder holds no run with figures.
    """
    config_path, metrics_path = folder / "config.json", folder / "metrics.jsonl"
    for path in (config_path, metrics_path):
        if not path.is_file():
            raise ValueError(f"{path}: not there. --against takes the folder of a run that has been trained here, such as runs/quickstart.")
    records = [json.loads(line) for line in metrics_path.read_text(encoding="utf-8").splitlines()]
    times = [record["perf/seconds_per_step"] for record in records if "perf/seconds_per_step" in record]
    if len(times) < 2:
        raise ValueError(f"{metrics_path}: {len(times)} log intervals; at least two are needed, because the first one warms up.")
    found = published(folder)
    run, plan, _ = plan_here(resolve(ds_configs.read(str(config_path), [])), open_checkpoint(found[0]) if found else None)
    measured = statistics.median(times[1:])
    lines = [
        f"{folder}: {run.batch.stages} stages x {run.batch.replicas} replicas, {len(times) - 1} log intervals",
        "                    planned   measured   planned / measured",
        f"seconds a step    {plan.step_seconds:>9.3f}  {measured:>9.3f}  {plan.step_seconds / measured:>8.2f}",
    ]
    peaks = {key: value for record in records for key, value in record.items() if key.startswith("memory/stage_")}
    snapshot = plan.snapshot_bytes if run.training.async_save else 0
    for stage, memory in enumerate(plan.process_bytes):
        planned = (memory + snapshot) / GIB
        if (peak := peaks.get(f"memory/stage_{stage}_run_gib")) is not None:
            lines.append(f"GiB of stage {stage:<4} {planned:>9.3f}  {peak:>9.3f}  {planned / peak:>8.2f}")
        elif (peak := peaks.get(f"memory/stage_{stage}_gib")) is not None:
            lines.append(f"GiB of stage {stage:<4} {planned:>9.3f}  {peak:>9.3f}   (measured with the libraries of the process)")
    return "\n".join(lines)
