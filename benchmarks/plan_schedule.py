"""Planned against measured: a DeepSpeed pipeline whose layers only sleep, so that the schedule is measured and not the processors.

    .venv/bin/python benchmarks/plan_schedule.py            # 3 and 6 stages

With `--rank` it is one rank of such a pipeline, as the launcher starts it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

FORWARD_SECONDS = (0.06, 0.10, 0.08, 0.12, 0.07, 0.10)  # Uneven, so that stages wait for each other.
BACKWARD_SECONDS = (0.12, 0.18, 0.16, 0.20, 0.15, 0.24)
MICRO_BATCHES = 8
STEPS = 4


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", action="store_true")
    parser.add_argument("--stages", type=int, nargs="+", default=[3, 6])
    options, _ = parser.parse_known_args()
    if options.rank:
        seconds = rank(options.stages[0])
        if os.environ["RANK"] == "0":
            print(f"measured {seconds:.4f}", flush=True)
        return
    for stages in options.stages:
        measured = start(stages)
        planned = plan(stages)
        print(
            f"{stages} stages, {MICRO_BATCHES} micro-batches: {planned / measured:.3f}, planned {planned:.3f} s, measured {measured:.3f} s"
        )


def plan(stages: int) -> float:
    from training.planning.schedule import StageSeconds, play

    pairs = zip(FORWARD_SECONDS[:stages], BACKWARD_SECONDS[:stages], strict=True)
    return play([StageSeconds(forward=forward, backward=backward) for forward, backward in pairs], MICRO_BATCHES).seconds


def start(stages: int) -> float:
    """Seconds of a step, measured by the ranks."""
    from training.launch.local import launcher

    start_ranks, environment = launcher(stages)
    command = [*start_ranks, str(Path(__file__).resolve()), "--rank", "--stages", str(stages)]
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("measured ")]
    if not found:
        sys.exit(done.stdout + done.stderr)
    return float(found[0])


def rank(stages: int) -> float:
    """Train a few steps; the median, without the first."""
    import deepspeed
    import torch
    from deepspeed.pipe import LayerSpec, PipelineModule

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # As a run does: nothing is compiled.

    class Sleep(torch.autograd.Function):
        @staticmethod
        def forward(context, hidden, seconds, back):
            context.back = back
            time.sleep(seconds)
            return hidden.clone()

        @staticmethod
        def backward(context, gradient):
            time.sleep(context.back)
            return gradient, None, None

    class Sleeper(torch.nn.Module):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(8))
            self.seconds, self.back = FORWARD_SECONDS[index], BACKWARD_SECONDS[index]

        def forward(self, hidden):
            return Sleep.apply(hidden * self.weight, self.seconds, self.back)

    deepspeed.init_distributed("gloo")
    specs = [LayerSpec(Sleeper, index) for index in range(stages)]
    module = PipelineModule(specs, num_stages=stages, loss_fn=lambda output, _: output.mean(), partition_method="uniform")
    config = {
        "train_batch_size": MICRO_BATCHES,
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
        "zero_optimization": {"stage": 1},
        "steps_per_print": 1 << 30,
    }
    engine, *_ = deepspeed.initialize(model=module, model_parameters=module.parameters(), config=config)
    row = torch.ones(1, 8)
    batches = iter(lambda: (row, row), None)
    times = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        engine.train_batch(batches)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
