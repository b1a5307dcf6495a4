"""The plan for this machine, by measurement, and how a run that was trained here compares with it.

    python -m training.planning.here JSON        > JSON

is one process of as many as a run would have, which measure layers and optimizer at the same time: stages on a CPU share caches and
memory, and a layer alone would be too fast.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import ds_configs
from model.config import ModelConfig
from model.families import preset
from model.flops import Workload, layer_parameters
from model.hardware.precision import choose_precision
from model.hardware.processors import usable_processors
from training.checkpoints.find_and_verify import Checkpoint, open_checkpoint, published
from training.config import RunConfig, resolve, with_precision
from training.launch.parent import bound
from training.planning.costs import GIB, Plan, cut, plan_step, recomputed

# Enough for the optimizer's time per parameter to be that of memory, not of Python or of a cache.
PROBED_PARAMETERS = 16_000_000
# More than the caches of a core and its share of what cores have together.
COLD_BYTES = 64 << 20
ROUNDS = 5
# Layers are timed so often; the factor between the sums above which it is said.
TIMES = 3
STEADY = 1.15


def plan_here(config: RunConfig, checkpoint: Checkpoint | None = None) -> tuple[RunConfig, Plan, list[str]]:
    """Measure this machine's processors and plan a run on them: the run with its precision decided, the plan, and what is said first.

    Args:
        config: The run.
        checkpoint: Of the run as it was trained: its precision and partition are kept; else both are chosen as the run would choose them.
    """
    precision = choose_precision(config.precision, "cpu", checkpoint.precision if checkpoint else None)
    run = with_precision(config, precision.bf16)
    batch, workload = run.batch, run.workload
    layers, per_parameter, spread = measure(run.values["model"], workload, batch.world_size)
    seconds = recomputed(layers, workload)
    parts = checkpoint.manifest["partition"] if checkpoint else cut(run, batch.stages, [sum(one) for one in seconds])
    held = [sum(layer_parameters(run.model)[start:stop]) for start, stop in pairwise(parts)]
    exchange = [per_parameter * parameters / batch.replicas for parameters in held]
    plan = plan_step(run.model, workload, parts, seconds, transfer=0.0, exchange=exchange)
    said = [f"{config.path}: {batch.world_size} processes on this machine's processors, in {precision.name}, {precision.reason}"]
    if batch.world_size > usable_processors():
        said.append(f"they take turns on {usable_processors()} cores; --device plans for devices that are not here")
    if spread > STEADY:
        said.append(
            f"the same layers took up to {spread:.2f} times as long a moment later: other work slows this machine, and the plan is no surer"
        )
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
    try:
        records = [json.loads(line) for line in metrics_path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise ValueError(
            f"{metrics_path}: not all of its lines are whole ({error}). The next start of the run drops what is not."
        ) from error
    times = [record["perf/seconds_per_step"] for record in records if "perf/seconds_per_step" in record]
    if len(times) < 2:
        raise ValueError(f"{metrics_path}: {len(times)} log intervals; at least two are needed, because the first one warms up.")
    found = published(folder)
    run, plan, said = plan_here(*_as_trained(config_path, open_checkpoint(found[0]) if found else None))
    steps = sorted(times[1:])
    measured = statistics.median(steps)
    lines = [
        f"{folder}: {run.batch.stages} stages x {run.batch.replicas} replicas, {len(times) - 1} log intervals",
        "                    planned   measured   planned / measured",
        f"seconds a step    {plan.step_seconds:>9.3f}  {measured:>9.3f}  {plan.step_seconds / measured:>8.2f}"
        f"   (measured {steps[0]:.3f} to {steps[-1]:.3f})",
    ]
    peaks = {key: value for record in records for key, value in record.items() if key.startswith("memory/stage_")}
    snapshot = plan.snapshot_bytes if run.training.async_save else 0
    for stage, memory in enumerate(plan.process_bytes):
        planned = (memory + snapshot) / GIB
        if (peak := peaks.get(f"memory/stage_{stage}_run_gib")) is not None:
            lines.append(f"GiB of stage {stage:<4} {planned:>9.3f}  {peak:>9.3f}  {planned / peak:>8.2f}")
        elif (peak := peaks.get(f"memory/stage_{stage}_gib")) is not None:
            lines.append(f"GiB of stage {stage:<4} {planned:>9.3f}  {peak:>9.3f}   (measured with the libraries of the process)")
    return "\n".join([*lines, *filter(None, said[1:])])


def _as_trained(config_path: Path, checkpoint: Checkpoint | None) -> tuple[RunConfig, Checkpoint | None]:
    """The run with the stages and replicas that its checkpoint was saved with: how many ranks were started is not in `config.json`."""
    if checkpoint is None:
        return resolve(ds_configs.read(config_path)), None
    stages, replicas = checkpoint.manifest["topology"]["pipe"], checkpoint.manifest["topology"]["data"]
    return resolve(ds_configs.read(config_path, [f"pipeline.stages={stages}"]), stages * replicas), checkpoint


def measure(values: Mapping[str, Any], workload: Workload, processes: int) -> tuple[list[tuple[float, float]], float, float]:
    """Seconds (forward, backward) of each layer and the optimizer's per parameter, means over processes, and how unsteady layers were.

    Args:
        values: The model section.
        workload: Sequence length, micro-batch and precision.
        processes: How many work at the same time; more than there are cores take turns, and need as much longer.

    Raises:
        ValueError: If a process fails, with its last line.
    """
    cores = usable_processors()
    together = min(processes, cores)
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // processes)), "DS_ACCELERATOR": "cpu"}
    asked = json.dumps({"model": values, "workload": asdict(workload)})
    command = bound([sys.executable, "-m", "training.planning.here", asked])
    started = [
        subprocess.Popen(command, env=environment, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(together)
    ]
    answers = []
    for process in started:
        output, errors = process.communicate()
        if process.returncode:
            raise ValueError(f"measuring this machine failed: {(errors.strip().splitlines() or ['no message'])[-1]}")
        answers.append(json.loads(output))
    turns = processes / together
    layers = turns * np.mean([answer["layers"] for answer in answers], axis=0)
    optimizer = turns * statistics.mean(answer["optimizer"] for answer in answers)
    return [(forward, backward) for forward, backward in layers.tolist()], optimizer, max(answer["spread"] for answer in answers)


def main() -> None:
    """One of the processes."""
    import torch

    from model.hardware.timing import layer_pass_seconds

    asked = json.loads(sys.argv[1])
    workload = Workload(**asked["workload"])
    config = ds_configs.build_section(ModelConfig, preset(asked["model"]), "model", "command line")
    times = [
        layer_pass_seconds(
            config,
            shape=(workload.micro_batch, workload.seq_length),
            dtype=torch.bfloat16 if workload.bf16 else torch.float32,
            device=torch.device("cpu"),
            synchronize=lambda: None,
            cold_bytes=COLD_BYTES,
        )
        for _ in range(TIMES)
    ]
    sums = np.sum(times, axis=(1, 2))
    spread = float(sums.max() / sums.min())
    json.dump({"layers": np.median(times, axis=0).tolist(), "optimizer": _optimizer_seconds(), "spread": spread}, sys.stdout)


def _optimizer_seconds() -> float:
    """Of AdamW for one parameter: clip, update of masters and moments, copy to the weights, gradients set to zero."""
    import torch

    masters = torch.zeros(PROBED_PARAMETERS, requires_grad=True)
    masters.grad = torch.ones_like(masters)
    weights = torch.zeros(PROBED_PARAMETERS, dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW([masters])
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        masters.grad.norm()
        masters.grad.mul_(0.5)
        optimizer.step()
        weights.copy_(masters.detach())
        masters.grad.zero_()
        best = min(best, time.perf_counter() - start)
    return best / PROBED_PARAMETERS


if __name__ == "__main__":
    main()
