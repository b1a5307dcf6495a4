"""Build the DeepSpeed engine of one rank."""

import gc
from collections.abc import Sequence
from typing import Any

from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.constants import BFLOAT16
from deepspeed.runtime.pipe import schedule
from deepspeed.runtime.pipe.engine import PipelineEngine
from deepspeed.runtime.pipe.topology import ProcessTopology

from model.pipeline import GPTPipeline, choose_parts
from training.config import RunConfig
from training.health.stage_clock import StageClock, timed
from training.launch.process_group import Ranks, quiet, seed_rank
from training.optimizer import muon
from training.optimizer.clip_and_step import ShardedOptimizer
from training.optimizer.parameter_groups import parameter_groups


def build_module(config: RunConfig, ranks: Ranks, parts: Sequence[int] | None = None) -> Any:
    """This rank's stage, initialised. Its `parts` say which layers each stage holds; given ones are used instead of measuring again."""
    workload = config.workload
    return GPTPipeline(
        config.model,
        # Consecutive ranks are one whole pipeline. DeepSpeed's own default spreads each over all hosts.
        topology=ProcessTopology(axes=["data", "pipe"], dims=[ranks.replicas, ranks.stages]),
        seed=config.run.seed,
        parts=parts or choose_parts(config.model, config.partition, workload, ranks.stages),
        activation_checkpoint_interval=workload.activation_checkpoint_interval,
    )


class Engine(PipelineEngine):
    """DeepSpeed's pipeline engine, with `ShardedOptimizer` around the basic optimizer in bf16 and in fp32, and a clock."""

    def __init__(self, **arguments: Any) -> None:
        self.clock = StageClock()
        super().__init__(**arguments)
        self.using_bf16_optimizer = True  # DeepSpeed compares classes, and ours is a subclass.
        self.module.sum_tied_gradients_apart()

    def train_batch(self, data_iter: Any = None) -> Any:
        """One step, as DeepSpeed's, measured."""
        with self.clock.step():
            return super().train_batch(data_iter)

    def _aggregate_total_loss(self) -> Any:
        with self.clock.waiting():
            return super()._aggregate_total_loss()

    def _exec_reduce_tied_grads(self) -> None:
        super()._exec_reduce_tied_grads()
        self.module.add_tied_gradient()

    _INSTRUCTION_MAP = timed({**PipelineEngine._INSTRUCTION_MAP, schedule.ReduceTiedGrads: _exec_reduce_tied_grads})

    def _configure_basic_optimizer(self, model_parameters: Any) -> Any:
        optimizer = super()._configure_basic_optimizer(model_parameters)
        for group in optimizer.param_groups:
            if group.get("use_muon"):
                # DeepSpeed hands this on to the function that `muon.patch_deepspeed` puts in the place of its own.
                group["ns_method"] = "bf16" if self.bfloat16_enabled() else "fp32"
        return optimizer

    def _get_zero_ckpt_prefix(self, dp_rank: int, bf16_mode: bool) -> str:
        return f"bf16_zero_pp_rank_{dp_rank}"  # Whatever the precision: it may change at a resume.

    def _do_optimizer_sanity_check(self, basic_optimizer: Any) -> str:
        return BFLOAT16  # The name of the branch that calls the next method.

    def _configure_bf16_optimizer(self, optimizer: Any) -> ShardedOptimizer:
        return ShardedOptimizer(
            optimizer,
            self.param_names,
            mpu=self.mpu,
            clock=self.clock,
            clip_grad=self.gradient_clipping(),
            allgather_bucket_size=self.zero_allgather_bucket_size(),
            dp_process_group=self.seq_data_parallel_group,
            immediate_grad_update=self._config.bfloat16_config.immediate_grad_update,
        )


def build_engine(module: Any, config: RunConfig, ranks: Ranks) -> Any:
    """Stage -> engine, with this rank's random state seeded last.

    The schedule's length must be in `config` (`training.config.with_deepspeed`).
    """
    # Stages and partition were used above; DeepSpeed's engine has no use for them.
    pipeline = {key: value for key, value in config.deepspeed.get("pipeline", {}).items() if key not in ("stages", "partition")}
    settings = {**config.deepspeed, "pipeline": {"use_reentrant": False, **pipeline}}
    weight_decay = settings["optimizer"].get("params", {}).get("weight_decay", 0.0)
    muon.patch_deepspeed()
    # What deepspeed.initialize does for a PipelineModule, but for the class.
    grid = module.mpu()
    gc.freeze()  # DeepSpeed collects garbage after each buffer it makes: a second in all, to look at what was imported again and again.
    with quiet():
        engine = Engine(
            args=None,
            model=module,
            model_parameters=parameter_groups(module, weight_decay),
            mpu=grid,
            config=settings,
            config_class=DeepSpeedConfig(settings, grid),
        )
        engine._configure_python_gc()
    if engine.lr_scheduler is not None:
        # DeepSpeed's schedules begin one step late: without this the first two steps of a warm-up have a learning rate of 0.
        engine.lr_scheduler.step()
    seed_rank(config.run.seed, ranks)
    return engine
