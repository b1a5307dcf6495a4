"""Build the DeepSpeed engine of one rank."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import deepspeed

from model.pipeline import PipelinePlan, build_pipeline
from training import gradient_norm
from training.config import RunConfig
from training.distributed import Ranks, quiet, seed_rank, topology
from training.optim import parameter_groups

log = logging.getLogger(__name__)


def build_module(config: RunConfig, ranks: Ranks, parts: Sequence[int] | None = None) -> Any:
    """This rank's stage, initialised. Its `parts` say which layers each stage holds; given ones are used instead of measuring again."""
    pipeline = config.deepspeed.get("pipeline", {})
    return build_pipeline(
        config.model,
        topology=topology(ranks),
        seed=config.run.seed,
        plan=PipelinePlan(
            partition=pipeline.get("partition", "flops"),
            parts=tuple(parts) if parts else None,
            seq_length=config.data.seq_length,
            micro_batch=config.batch.micro_batch,
            bf16=config.uses_bf16,
            activation_checkpoint_interval=pipeline.get("activation_checkpoint_interval", 0),
            use_reentrant=pipeline.get("use_reentrant", False),
        ),
    )


def build_engine(module: Any, config: RunConfig, ranks: Ranks, *, load_universal: bool) -> Any:
    """Stage -> engine, with this rank's random state seeded last.

    Args:
        module: What `build_module` returned.
        config: With the schedule's length filled in (`training.config.with_deepspeed`).
        ranks: This rank's place.
        load_universal: The checkpoint to be loaded is a universal one (another topology saved it).
    """
    # Stages and partition were used above; DeepSpeed's engine has no use for them.
    pipeline = {key: value for key, value in config.deepspeed.get("pipeline", {}).items() if key not in ("stages", "partition")}
    settings = {**config.deepspeed, "pipeline": {"use_reentrant": False, **pipeline}}
    if load_universal:
        settings["checkpoint"] = {**settings.get("checkpoint", {}), "load_universal": True}
    weight_decay = settings["optimizer"].get("params", {}).get("weight_decay", 0.0)
    gradient_norm.install()
    with quiet():
        engine, *_ = deepspeed.initialize(
            model=module, config=settings, model_parameters=parameter_groups(module.parameters(), weight_decay)
        )
    if engine.lr_scheduler is not None:
        # DeepSpeed's schedules begin one step late: without this the first two steps of a warm-up have a learning rate of 0.
        engine.lr_scheduler.step()
    seed_rank(config.run.seed, ranks)
    return engine
