"""Save real checkpoints with known weights: one process for each rank of a configuration.

    python save_run.py RUN_FOLDER STEP...

The masters of step N are the weights that the plain model draws from seed N, which are no bf16 numbers: a reader that takes
the bf16 copies, or mixes up pieces, cannot get them exactly.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

import deepspeed
import torch
from deepspeed.utils import safe_set_full_fp32_param

import ds_configs
from model.config import ModelConfig
from model.gpt import GPT
from training.checkpoints.save import Saver
from training.config import RunConfig, resolve
from training.launch.local import free_port
from training.launch.process_group import prepare_environment, start
from training.launch.world import World
from training.run.engine import build_engine, build_module


def rank_main(rank: int, config: RunConfig, folder: Path, steps: list[int], port: int) -> None:
    size = config.batch.stages * config.batch.replicas
    world = World(rank=rank, local_rank=rank, size=size, local_size=size, master_addr="127.0.0.1", master_port=port)
    prepare_environment(world)
    ranks = start(world, config.batch.stages)
    engine = build_engine(build_module(config, ranks), config, ranks, load_universal=False)
    # Adam has no moments before its first step, and DeepSpeed's converter finds no weights where there are no moments.
    row = torch.zeros(config.batch.micro_batch, config.data.seq_length, dtype=torch.int64)
    engine.train_batch(itertools.repeat((row, row)))
    saver = Saver(ranks, folder, keep=len(steps), copy=False)
    for step in steps:
        set_masters(engine, config.model, seed=step)
        engine.global_steps = step
        engine.global_samples = step * config.batch.train_batch_size
        facts = {"metrics": {"train/loss": 5.5, "valid/bits_per_char": 7.25}}
        saver.start(engine, facts)
        saver.finish()
        assert saver.saved_step == step
    torch.distributed.destroy_process_group()


def set_masters(engine: deepspeed.PipelineEngine, config: ModelConfig, seed: int) -> None:
    """fp32 masters drawn from the seed; in a bf16 run the bf16 copies stay what they were."""
    weights = GPT(config, seed=seed).state_dict()
    for name, parameter in engine.module.named_parameters():
        safe_set_full_fp32_param(parameter, weights[name.replace("tied_modules.embedding", "0")])
        if parameter.dtype == torch.float32:
            parameter.data.copy_(weights[name.replace("tied_modules.embedding", "0")])


def main() -> None:
    folder, steps = Path(sys.argv[1]), [int(step) for step in sys.argv[2:]]
    config = resolve(ds_configs.load(folder / "config.json"))
    torch.set_num_threads(1)
    # Forked, so that DeepSpeed is imported once and not once a rank.
    torch.multiprocessing.start_processes(  # type: ignore[attr-defined]
        rank_main,
        args=(config, folder, steps, free_port()),
        nprocs=config.batch.stages * config.batch.replicas,
        start_method="fork",
    )


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
