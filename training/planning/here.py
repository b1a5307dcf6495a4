"""Measure on this machine what a stage's layers and optimizer take, with as many processes at work as a run would have.

    python -m training.planning.here JSON        > JSON

One process of several that measure at the same time: stages on a CPU share caches and memory, and a layer alone would be too fast.
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
from typing import Any

import numpy as np

from ds_configs import build_section
from model.config import ModelConfig
from model.families import preset
from model.flops import Workload
from model.hardware.processors import usable_processors
from training.launch.parent import bound

# Enough for the optimizer's time per parameter to be that of memory, not of Python or of a cache.
PROBED_PARAMETERS = 16_000_000
# More than the caches of a core and its share of what cores have together.
COLD_BYTES = 64 << 20
ROUNDS = 5


def measure(values: Mapping[str, Any], workload: Workload, processes: int) -> tuple[list[tuple[float, float]], float]:
    """Seconds (forward, backward) of each layer, and the optimizer's seconds per parameter; the mean over processes.

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
    return [(forward, backward) for forward, backward in layers.tolist()], optimizer


def main() -> None:
    """One of the processes."""
    import torch

    from model.hardware.timing import layer_pass_seconds

    asked = json.loads(sys.argv[1])
    workload = Workload(**asked["workload"])
    config = build_section(ModelConfig, preset(asked["model"]), "model", "command line")
    layers = layer_pass_seconds(
        config,
        shape=(workload.micro_batch, workload.seq_length),
        dtype=torch.bfloat16 if workload.bf16 else torch.float32,
        device=torch.device("cpu"),
        synchronize=lambda: None,
        cold_bytes=COLD_BYTES,
    )
    json.dump({"layers": layers, "optimizer": _optimizer_seconds()}, sys.stdout)


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
