"""Put one rank's part of a run together: its precision, its engine at the step of a checkpoint, and what the loop carries along."""

import dataclasses
import functools
import importlib
import logging

from deepspeed.accelerator import get_accelerator

from model.config import InitializeConfig
from model.flops import stage_table
from model.hardware.precision import Precision, choose_precision
from training.checkpoints.find_and_verify import Checkpoint
from training.checkpoints.load import load_checkpoint
from training.checkpoints.save import Saver
from training.config import RunConfig
from training.health.spikes import Spikes
from training.health.watchdog import Heartbeat
from training.launch.process_group import Ranks, gather, placement
from training.run.engine import Engine, build_engine, build_module
from training.run.loop import Run
from training.run.meter import Meter, resident_bytes
from training.run.stop_request import StopRequest, reason_to_stop
from training.run_folder.outputs import RunOutputs

log = logging.getLogger(__name__)

# By torch, when a module is built and an optimizer made. Now, so that they are not taken for memory of the model.
LATE_IMPORTS = ("torch.fx.experimental.symbolic_shapes", "torch._dynamo")


def agree_on_precision(config: RunConfig, checkpoint: Checkpoint | None, ranks: Ranks) -> Precision:
    """What all ranks compute in: rank 0 decides, since two processors may measure two things, and says it."""
    saved = checkpoint.precision if checkpoint else None
    kind = get_accelerator().device_name()
    decided: Precision = gather(choose_precision(config.precision, kind, saved) if ranks.is_first else None)[0]
    if ranks.is_first:
        log.info(decided)
        if decided.warning:
            log.warning(decided.warning)
        if saved not in (None, decided.name):
            log.info("changed since the checkpoint: precision %s -> %s; the fp32 masters stay exact", saved, decided.name)
    return decided


def assemble(config: RunConfig, ranks: Ranks, heartbeat: Heartbeat, checkpoint: Checkpoint | None, last_step: int) -> tuple[Engine, Run]:
    """Build the engine, at the step of the checkpoint that was chosen if there is one, and all that goes with it."""
    for name in LATE_IMPORTS:
        importlib.import_module(name)
    libraries_bytes = resident_bytes()
    engine = _engine_at(config, ranks, checkpoint, last_step)
    find_reason = functools.partial(reason_to_stop, config.folder, config.training.stop_after_minutes, heartbeat)
    stop = StopRequest(heartbeat, get_accelerator().current_device_name(), config.training.stop_grace_seconds, find_reason)
    spikes = Spikes(config.training.spike, checkpoint.manifest.get("spikes") if checkpoint else None)
    meter = Meter(config, ranks, spikes, libraries_bytes)
    outputs = RunOutputs(config, last_step=last_step, start_step=engine.global_steps) if ranks.is_first else None
    saver = Saver(
        ranks, config.folder, keep=config.training.keep_checkpoints, copy=config.training.async_save, say=outputs.saved if outputs else None
    )
    heartbeat.beat()
    return engine, Run(
        ranks=ranks, last_step=last_step, heartbeat=heartbeat, stop=stop, meter=meter, outputs=outputs, saver=saver, spikes=spikes
    )


def _engine_at(config: RunConfig, ranks: Ranks, checkpoint: Checkpoint | None, last_step: int) -> Engine:
    parts = None
    if checkpoint:
        # All weights are loaded from it, and the folder that the run once started from may be gone.
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, initialize=InitializeConfig()))
        if config.partition == "measured" and checkpoint.manifest["topology"] == ranks.topology:
            # Such a split comes out a little different each time; a resumed run keeps the one it was saved with.
            parts = checkpoint.manifest["partition"]
    module = build_module(config, ranks, parts)
    engine = build_engine(module, config, ranks)
    lines = [*placement(ranks), *stage_table(config.model, module.parts, config.workload).splitlines()]
    for line in lines if ranks.is_first else ():
        log.info(line)
    if checkpoint:
        changes = load_checkpoint(engine, ranks, checkpoint)
        if ranks.is_first:
            log.info("resuming %s from step %d of %d", config.folder, engine.global_steps, last_step)
            if engine.global_samples != engine.global_steps * config.batch.train_batch_size:
                log.info(
                    "%d steps have read %d samples; from now on a step reads train_batch_size = %d",
                    engine.global_steps,
                    engine.global_samples,
                    config.batch.train_batch_size,
                )
            for change in changes:
                log.info("changed since the checkpoint: %s", change)
    elif config.model.initialize.method != "scratch":
        module.set_fp32_masters()
    return engine
