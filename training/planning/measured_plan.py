"""The plan for this machine, by measurement (`probe.py`), and how a run that was trained here compares with it."""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

import ds_configs
from model.flops import Workload, count_parameters, stage_summary
from model.hardware.precision import choose_precision
from model.hardware.processors import usable_processors
from training.checkpoints.find_and_verify import Checkpoint, open_checkpoint, published
from training.config import RunConfig, resolve, with_precision
from training.launch.process_tree import bound
from training.planning.costs import GIB, Plan, cut, process_bytes, recomputed, saved_bytes, stage_seconds
from training.planning.probe import Probed

# Between which the optimizer is timed: fewer parameters would time Python, more would need memory and time for the same figure.
FEWEST_PARAMETERS, MOST_PARAMETERS = 1_000_000, 32_000_000
# The factor between two measurements of the same layers above which it is said.
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
    updated = min(max(count_parameters(run.model) // batch.world_size, FEWEST_PARAMETERS), MOST_PARAMETERS)  # Were stages alike.
    probed, spread = measure(run.values["model"], workload, batch.world_size, updated)
    plan = plan_probed(run, probed, checkpoint.manifest["partition"] if checkpoint else None)
    said = [f"{config.path}: {batch.world_size} processes on this machine's processors, in {precision.name}, {precision.reason}"]
    if batch.world_size > usable_processors():
        said.append(f"they take turns on {usable_processors()} cores; --device plans for devices that are not here")
    if spread > STEADY:
        said.append(
            f"the same layers took up to {spread:.2f} times as long a moment later: other work slows this machine, and the plan is no surer"
        )
    return run, plan, [*said, ""]


def plan_probed(run: RunConfig, probed: Probed, parts: Sequence[int] | None = None) -> Plan:
    """The plan of a run whose precision is decided, with these figures; `parts` as the run would choose them unless they are given."""
    workload, batch = run.workload, run.batch
    layers = recomputed([(forward, backward) for forward, backward in probed.layers], workload)
    parts = parts or cut(run, batch.stages, [sum(one) for one in layers])
    rows = stage_summary(run.model, parts, workload)
    stages = []
    for row in rows:
        tied = probed.tied if run.model.tie_embeddings and batch.stages > 1 and row.stage in (0, batch.stages - 1) else 0.0
        reduce, step = probed.reduce * row.parameters + tied, probed.update * row.parameters / batch.replicas
        stages.append(stage_seconds(row, layers, reduce=reduce, step=step))
    memory = [process_bytes(row) + (saved_bytes(row) if run.training.async_save else 0) for row in rows]
    return Plan(workload=workload, rows=rows, memory_bytes=memory, seconds=stages, transfer=probed.transfer)


def compare(folder: Path) -> str:
    """Planned and measured side by side. Raises ValueError if the folder holds no run with figures."""
    config_path, metrics_path = folder / "config.json", folder / "metrics.jsonl"
    for path in (config_path, metrics_path):
        if not path.is_file():
            raise ValueError(f"{path}: not there. --against takes the folder of a run that has been trained here, such as runs/quickstart.")
    try:
        records = [dict(json.loads(line)) for line in metrics_path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{metrics_path}: not all of its lines are whole ({error}). The next start of the run drops what is not."
        ) from error
    timed = [record for record in records if "perf/seconds_per_step" in record]
    times = [record["perf/seconds_per_step"] for record in timed]
    if len(times) < 2:
        raise ValueError(f"{metrics_path}: {len(times)} log intervals; at least two are needed, because the first one warms up.")
    found = published(folder)
    checkpoint = open_checkpoint(found[0]) if found else None
    run, plan, said = plan_here(_as_trained(config_path, checkpoint), checkpoint)
    # The plan is made of means. A figure stands for as many steps as it is after the one before, and one behind a resume for at least one.
    counts = [max(1, record["step"] - before["step"]) for before, record in itertools.pairwise(timed)]
    steps, measured = sorted(times[1:]), statistics.fmean(times[1:], counts)
    lines = [
        f"{folder}: {run.batch.stages} stages x {run.batch.replicas} replicas, {len(times) - 1} log intervals",
        "                    planned   measured   planned / measured",
        f"seconds a step    {plan.step_seconds:>9.3f}  {measured:>9.3f}  {plan.step_seconds / measured:>8.2f}"
        f"   (measured {steps[0]:.3f} to {steps[-1]:.3f})",
    ]
    peaks = {key: value for record in records for key, value in record.items() if key.startswith("memory/stage_")}
    for stage, memory in enumerate(plan.memory_bytes):
        planned = memory / GIB
        if (peak := peaks.get(f"memory/stage_{stage}_run_gib")) is not None:
            lines.append(f"GiB of stage {stage:<4} {planned:>9.3f}  {peak:>9.3f}  {planned / peak:>8.2f}")
        elif (peak := peaks.get(f"memory/stage_{stage}_gib")) is not None:
            lines.append(f"GiB of stage {stage:<4} {planned:>9.3f}  {peak:>9.3f}   (measured with the libraries of the process)")
    return "\n".join([*lines, *filter(None, said[1:])])


def _as_trained(config_path: Path, checkpoint: Checkpoint | None) -> RunConfig:
    """The run with the stages and replicas that its checkpoint was saved with: how many ranks were started is not in `config.json`."""
    if checkpoint is None:
        return resolve(ds_configs.read(config_path))
    topology = checkpoint.manifest["topology"]
    return resolve(ds_configs.read(config_path, [f"pipeline.stages={topology['pipe']}"]), topology["pipe"] * topology["data"])


def measure(values: Mapping[str, Any], workload: Workload, processes: int, parameters: int) -> tuple[Probed, float]:
    """Means over processes of what `probe` measures, and how unsteady layers were.

    Args:
        values: The model section.
        workload: Sequence length, micro-batch and precision.
        processes: How many work at the same time; more than there are cores take turns, and need as much longer.
        parameters: That the update is timed with.

    Raises:
        ValueError: If a process fails, with its last line.
    """
    cores = usable_processors()
    together = min(processes, cores)
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // processes)), "DS_ACCELERATOR": "cpu"}
    asked = {"model": values, "workload": asdict(workload), "parameters": parameters, "processes": together}
    answers = []
    with tempfile.TemporaryDirectory() as folder:
        commands = [
            bound([sys.executable, "-m", "training.planning.probe", json.dumps({**asked, "rank": rank, "folder": folder})])
            for rank in range(together)
        ]
        started = [
            subprocess.Popen(command, env=environment, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for command in commands
        ]
        for process in started:
            output, errors = process.communicate()
            if process.returncode:
                raise ValueError(f"measuring this machine failed: {(errors.strip().splitlines() or ['no message'])[-1]}")
            answers.append(json.loads(output))
    return mean([Probed(**answer["probed"]) for answer in answers], processes / together), max(answer["spread"] for answer in answers)


def mean(probed: Sequence[Probed], turns: float = 1.0) -> Probed:
    """Of several processes, each of which computes once in so many turns. Links are those of the first, as one of a pair measures them."""
    names = ("layers", "reduce", "update")
    return replace(probed[0], **{name: (turns * np.mean([getattr(one, name) for one in probed], axis=0)).tolist() for name in names})
