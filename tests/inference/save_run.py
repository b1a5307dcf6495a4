"""Save real checkpoints with known weights: one process for each rank of a configuration.

    python -m tests.inference.save_run RUN_FOLDER STEP...

The masters of step N are the weights that the plain model draws from seed N, which are no bf16 numbers: a reader that takes
the bf16 copies, or mixes up pieces, cannot get them exactly.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import deepspeed
import torch
from deepspeed.utils import safe_set_full_fp32_param

import ds_configs
from model.config import ModelConfig
from model.gpt import GPT
from tests.ranks import fork
from training.checkpoints.save import Saver
from training.config import RunConfig, resolve
from training.launch.process_group import Ranks
from training.run.engine import build_engine, build_module


def rank_main(ranks: Ranks, config: RunConfig, folder: Path, steps: list[int]) -> None:
    engine = build_engine(build_module(config, ranks), config, ranks)
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
    fork(rank_main, config, folder, steps, size=config.batch.stages * config.batch.replicas, stages=config.batch.stages)


if __name__ == "__main__":
    main()
