"""What a plan for this machine rests on, measured for a moment in one process of as many as a run would have.

    python -m training.planning.probe JSON        > JSON

They work at the same time: stages on a CPU share caches and memory, and a layer alone would be too fast. Whatever is timed is timed as
the run does it, in its precision and its sizes.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch import distributed

import ds_configs
from model.config import ModelConfig
from model.families import preset
from model.flops import Workload
from model.hardware.timing import layer_pass_seconds

# More than the caches of a core and its share of what cores have together.
COLD_BYTES = 64 << 20
ROUNDS = 9
# How often a plan has layers timed.
TIMES = 3
# The other one measures the same; gloo would wait half an hour for one that has ended.
PEER_LIMIT = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class Probed:
    """Seconds."""

    layers: list[list[float]]
    """Of each layer, forward and backward, one micro-batch."""
    reduce: float
    """For one parameter, until its gradient is summed, the network left out."""
    update: float
    """For one parameter: norm, clipping, AdamW, copy to the weights, gradients set to zero."""
    transfer: float
    """Of one micro-batch to the next stage."""
    tied: float
    """Sum of a tied matrix's gradients over first and last stage."""


def probe(config: ModelConfig, workload: Workload, parameters: int, times: int = 1) -> tuple[Probed, float]:
    """Measure. Two processes of a gloo group, if there is one, measure what lies between them.

    Args:
        config: The model.
        workload: Sequence length, micro-batch and precision.
        parameters: That the update is timed with: memory that is fresh, in a cache or neither takes different times.
        times: How often layers are timed.

    Returns:
        What was measured, and the factor between the shortest and the longest time of all layers together.
    """
    dtype = torch.bfloat16 if workload.bf16 else torch.float32
    layers = [
        layer_pass_seconds(config, workload, device=torch.device("cpu"), synchronize=lambda: None, cold_bytes=COLD_BYTES)
        for _ in range(times)
    ]
    sums = np.sum(layers, axis=(1, 2))
    reduce, update = _once_a_step(parameters, dtype)
    transfer, tied = _links(config, workload, dtype) if distributed.is_initialized() else (0.0, 0.0)
    per_layer = np.mean(layers, axis=0).tolist()
    probed = Probed(layers=per_layer, reduce=reduce / parameters, update=update / parameters, transfer=transfer, tied=tied)
    return probed, float(sums.max() / sums.min())


def _once_a_step(parameters: int, dtype: torch.dtype) -> tuple[float, float]:
    """What DeepSpeed and the optimizer do with the gradients of one stage: (copies for the sum over replicas, update)."""
    masters = torch.zeros(parameters, requires_grad=True)
    masters.grad = gradient = torch.ones(parameters)
    weights = torch.zeros(parameters, dtype=dtype)
    optimizer = torch.optim.AdamW([masters])

    def reduce() -> None:
        flat = gradient.clone()
        flat.copy_(flat.to(dtype))
        gradient.copy_(flat)

    def update() -> None:
        gradient.norm()
        gradient.mul_(0.5)
        optimizer.step()
        weights.copy_(masters.detach())
        gradient.zero_()
        gradient.zero_()  # The optimizer does, and the engine once more.

    rounds = [(_seconds(reduce), _seconds(update)) for _ in range(ROUNDS)][1:]
    return statistics.fmean(one for one, _ in rounds), statistics.fmean(two for _, two in rounds)


def _links(config: ModelConfig, workload: Workload, dtype: torch.dtype) -> tuple[float, float]:
    """Between two processes: (one micro-batch, one way, and its copy; the sum of a tied matrix)."""
    hidden = torch.zeros(workload.micro_batch, workload.seq_length, config.hidden_size, dtype=dtype)
    matrix = torch.zeros(config.vocab_size * config.hidden_size)
    first = distributed.get_rank() == 0

    def there_and_back() -> None:
        for sends in (first, not first):
            if sends:
                distributed.send(hidden, 1 - distributed.get_rank())
            else:
                distributed.recv(hidden, 1 - distributed.get_rank())
                hidden.clone()

    def add_up() -> None:
        distributed.all_reduce(matrix)

    distributed.barrier()
    transfer = statistics.fmean(_seconds(there_and_back) for _ in range(ROUNDS)) / 2
    tied = statistics.fmean(_seconds(add_up) for _ in range(ROUNDS)) if config.tie_embeddings else 0.0
    return transfer, tied


def _seconds(part: Callable[[], None]) -> float:
    start = time.perf_counter()
    part()
    return time.perf_counter() - start


def main() -> None:
    """One of the processes."""
    asked = json.loads(sys.argv[1])
    if asked["rank"] < 2 <= asked["processes"]:
        meeting = Path(asked["folder"]) / "meeting"
        distributed.init_process_group("gloo", init_method=meeting.as_uri(), rank=asked["rank"], world_size=2, timeout=PEER_LIMIT)
    config = ds_configs.build_section(ModelConfig, preset(asked["model"]), "model", "command line")
    probed, spread = probe(config, Workload(**asked["workload"]), asked["parameters"], TIMES)
    json.dump({"probed": asdict(probed), "spread": spread}, sys.stdout)
    if distributed.is_initialized():
        distributed.destroy_process_group()  # Or a thread of gloo's that still waits may abort the process at its end.


if __name__ == "__main__":
    main()
