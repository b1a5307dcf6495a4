"""Two ranks that train one configuration after the other: importing DeepSpeed costs more than all these trainings together.

    python family_ranks.py CONFIG...

Each run leaves what training always leaves in its folder, and `start-<stage>.pt`: the stage's weights and the optimizer's fp32 masters
before the first step.
"""

from __future__ import annotations

import os
import sys

import torch
from deepspeed.utils import safe_get_full_fp32_param

import ds_configs
from data.dataset import open_corpus
from training.config import resolve, with_deepspeed
from training.distributed import Ranks, prepare_environment, start
from training.faults import Heartbeat
from training.local import free_port
from training.loop import train
from training.pretrain import assemble, check_vocabulary
from training.record import write_config
from training.world import World

STAGES = 2


def train_one(path: str, ranks: Ranks, heartbeat: Heartbeat) -> None:
    config = resolve(ds_configs.load(path), STAGES)
    corpus = open_corpus(config.data, seed=config.run.seed)
    check_vocabulary(config, corpus)
    config = with_deepspeed(config, config.last_step(corpus.train.samples_per_epoch))
    if ranks.is_first:
        config.folder.mkdir(parents=True)
        write_config(config, [])
    engine, run = assemble(config, ranks, heartbeat, len_epoch=corpus.train.samples_per_epoch)
    masters = {name: safe_get_full_fp32_param(weight).clone() for name, weight in engine.module.named_parameters()}
    torch.save((engine.module.state_dict(), masters), config.folder / f"start-{ranks.stage}.pt")
    train(engine, config, corpus, run)
    if run.writer:
        run.writer.close()


def rank_main(rank: int, paths: list[str], port: int) -> None:
    world = World(rank=rank, local_rank=rank, size=STAGES, local_size=STAGES, master_addr="127.0.0.1", master_port=port)
    prepare_environment(world)
    ranks = start(world, STAGES)
    heartbeat = Heartbeat(limit_seconds=120)
    for path in paths:
        train_one(path, ranks, heartbeat)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def main() -> None:
    torch.set_num_threads(1)
    # Forked, so that DeepSpeed is imported once and not once a rank.
    torch.multiprocessing.start_processes(rank_main, args=(sys.argv[1:], free_port()), nprocs=STAGES, start_method="fork")


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
