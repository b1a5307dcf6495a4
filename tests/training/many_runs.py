"""Train several configurations one after the other: importing DeepSpeed costs more than all these trainings together.

    python -m tests.training.many_runs 'JSON'

JSON is a list of {"config": FILE, "overrides": [...], "world": RANKS}, and where a rank is to sleep before each forward pass also
"slow": {"rank": RANK, "seconds": SECONDS}. Each run leaves what training always leaves in its folder, and
`start-<stage>.pt`: weights and the optimizer's fp32 masters of a stage of the first replica as they were before the first step.
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
import time
from typing import Any

import torch
from deepspeed.utils import safe_get_full_fp32_param

import ds_configs
from data.batches.datasets import open_datasets
from tests.ranks import fork
from training.checkpoints.load import choose_checkpoint
from training.config import resolve, with_deepspeed, with_precision
from training.health.watchdog import Heartbeat
from training.launch.process_group import Ranks
from training.preflight import check_vocabulary
from training.run.assembly import agree_on_precision, assemble
from training.run.loop import train
from training.run_folder.provenance import write_config


def train_one(job: dict[str, Any], ranks: Ranks, heartbeat: Heartbeat) -> None:
    config = resolve(ds_configs.load(job["config"], job.get("overrides", [])), ranks.world.size)
    datasets = open_datasets(config.data, seed=config.run.seed)
    check_vocabulary(config, datasets)
    last_step = config.last_step(datasets.train.samples_per_epoch)
    assert last_step is not None
    config = with_deepspeed(config, last_step)
    checkpoint = choose_checkpoint(config.folder, ranks)
    precision = agree_on_precision(config, checkpoint, ranks)
    config = with_precision(config, precision.bf16)
    if ranks.is_first:
        config.folder.mkdir(parents=True, exist_ok=True)
        write_config(config, [], {"precision": str(precision), "text": datasets.text})
    engine, run = assemble(config, ranks, heartbeat, checkpoint, last_step)
    masters = {name: safe_get_full_fp32_param(weight).clone() for name, weight in engine.module.named_parameters()}
    if ranks.replica == 0:
        torch.save((engine.module.state_dict(), masters), config.folder / f"start-{ranks.stage}.pt")
    if job.get("slow", {}).get("rank") == ranks.world.rank:
        engine.module.register_forward_pre_hook(lambda *_: time.sleep(job["slow"]["seconds"]))
    train(engine, config, datasets, run)
    if run.outputs:
        run.outputs.close()


def stages_of(job: dict[str, Any]) -> int:
    return resolve(ds_configs.load(job["config"], job.get("overrides", []))).batch.stages


def rank_main(ranks: Ranks, jobs: list[dict[str, Any]]) -> None:
    level = logging.INFO if ranks.is_first else logging.WARNING
    logging.basicConfig(format="%(message)s", level=level, stream=sys.stdout, force=True)
    heartbeat = Heartbeat(limit_seconds=600)
    for job in jobs:
        train_one(job, ranks, heartbeat)


def main() -> None:
    for (size, stages), jobs in itertools.groupby(json.loads(sys.argv[1]), key=lambda job: (job["world"], stages_of(job))):
        fork(rank_main, list(jobs), size=size, stages=stages)


if __name__ == "__main__":
    main()
