"""One rank of a run: `run_pretrain.sh` starts it through DeepSpeed's launcher, mpiexec, srun or torchrun.

Everything that can be wrong is found out before the process group exists, so that no rank waits for one that has left.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import ds_configs
from data.store.identity import Identity
from training.config import RunConfig, resolve, with_deepspeed, with_precision
from training.launch.arguments import check_arrival, parse
from training.launch.parent import watch_launcher
from training.launch.preflight import Arrival
from training.launch.rendezvous import meet
from training.launch.world import World, check_placement, find_world, speaks_for_host
from training.run.first_weights import check_first_weights, first_weights_notes, without_folder
from training.run.signals import leaving, listen
from training.run_folder.lock import hold
from training.run_folder.provenance import check_text, keep_text
from training.run_folder.record import check_folder, finished_step, remove_unused, write_config, write_results
from training.run_folder.remarks import unreached

if TYPE_CHECKING:
    from data.serving.corpus import Corpus
    from model.hardware.precision import Precision
    from training.launch.process_group import Ranks
    from training.run.loop import Run

log = logging.getLogger("training")

DEFAULT_CONFIG = "ds_configs/hongloumeng_500m.json"
EXIT_USER_ERROR = 2
# Hundreds of ranks read Python's files from one file system before they meet.
MEETING_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a rank has when it is ready to start."""

    config: RunConfig
    corpus: Corpus
    last_step: int
    finished: int | None

    def facts(self) -> dict[str, str]:
        """What must be the same on all hosts, short enough to compare."""
        versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "deepspeed")]
        return {
            "the configuration": _digest(self.config.values),
            "the token store": _digest(self.corpus.manifest),
            "the software": ", ".join([f"Python {platform.python_version()}", *versions]),
            "the last step of the run's checkpoints": str(self.finished or "not reached"),
        }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def main(arguments: Sequence[str]) -> int:
    """Run this rank to its end. Returns the exit code: 0 finished, 2 a mistake of the user's, 1 a failure, 128 + n stopped by signal n."""
    listen(leaving(None))
    watch_launcher(os.environ)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        world = find_world(os.environ)
    except ValueError as error:
        if speaks_for_host(os.environ):
            print(f"run_pretrain.sh: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    path, overrides = parse(arguments, DEFAULT_CONFIG)
    ready = None
    try:
        check_arrival(overrides, os.environ)
        config = resolve(ds_configs.read(path, overrides), world.size)
        arrival = Arrival(stages=config.batch.stages, folder=config.folder)
        ready = prepare(config, world, overrides)
        arrival = dataclasses.replace(arrival, facts=ready.facts())
    except (ValueError, OSError) as error:
        arrival = Arrival(problem=str(error))
        if world.rank == 0:
            print(error, file=sys.stderr, flush=True)
    start = meet(world, arrival, MEETING_SECONDS, lambda line: print(line, file=sys.stderr, flush=True))
    if ready is None or not start:
        if ready is not None and world.rank == 0:
            remove_unused(ready.config.folder)
        return EXIT_USER_ERROR
    return _leave(_run(ready, overrides, world))


def prepare(config: RunConfig, world: World, overrides: Sequence[str] = ()) -> Prepared:
    """Check what this rank can check by itself, and open the data.

    Raises:
        ValueError: With what is wrong.
        OSError: If a folder cannot be read or written.
    """
    check_placement(world, config.batch.stages)
    if world.rank == 0:
        check_folder(config)
    from data.serving.corpus import open_corpus

    of_data = [override for override in overrides if override.startswith(("data.", "run.name="))]
    corpus = open_corpus(config.data, seed=config.run.seed, config_path=shlex.join([str(config.path), *of_data]))
    if world.rank == 0:
        check_text(config, Identity.from_manifest(corpus.manifest), corpus.text["tokenizer"])
    check_vocabulary(config, corpus)
    check_first_weights(config)
    last_step = config.last_step(corpus.train.samples_per_epoch)
    assert last_step is not None
    if world.rank == 0:
        hold(config.folder)  # Until this process ends; and made only now, when this rank has nothing left to refuse.
    return Prepared(config=with_deepspeed(config, last_step), corpus=corpus, last_step=last_step, finished=finished_step(config, last_step))


def _run(ready: Prepared, overrides: Sequence[str], world: World) -> int:
    if ready.finished is not None:
        if world.rank == 0:
            print(f"{ready.config.folder} is finished: step {ready.finished} of {ready.last_step}.", file=sys.stderr)
        return 0
    from training.launch.process_group import prepare_environment
    from training.run.failure import say_failure

    try:
        prepare_environment(world)  # Before deepspeed is imported: it reads DS_ACCELERATOR then.
        return _train(ready.config, overrides, ready.corpus, world)
    except (RuntimeError, OSError, ValueError) as error:
        if os.environ.get("PRETRAIN_TRACEBACK"):
            traceback.print_exc()
        say_failure(world, f"rank {world.rank} of {world.size}: {type(error).__name__}: {error}  (PRETRAIN_TRACEBACK=1 shows the trace.)")
    except Exception:  # A mistake of ours: the whole trace is what helps.
        traceback.print_exc()
    return 1


def _leave(code: int) -> NoReturn:
    """End this rank without Python's own end.

    With peers inside a collective, the process group's clean-up would wait for them: leaving is what frees them. And threads that still
    wait in C++ (gloo's, the watchdog's) have aborted a rank that had finished ("terminate called without an active exception").
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def check_vocabulary(config: RunConfig, corpus: Corpus) -> None:
    """The model must know every id the store can hold.

    Raises:
        ValueError: If the tokenizer has more ids than the model.
    """
    if corpus.tokenizer.vocab_size > config.model.vocab_size:
        raise ValueError(
            f"{config.path}: model.vocab_size = {config.model.vocab_size}, but the tokenizer in {corpus.folder} has "
            f"{corpus.tokenizer.vocab_size} ids. Set model.vocab_size to {corpus.tokenizer.vocab_size} or more."
        )


def _train(config: RunConfig, overrides: Sequence[str], corpus: Corpus, world: World) -> int:
    from training.checkpoints.checkpoint import choose_checkpoint
    from training.launch.process_group import start
    from training.run.loop import train
    from training.run.watchdog import Heartbeat
    from training.run_folder.outputs import open_log

    # deepspeed's own start-up chatter is not ours to repeat on 192 ranks.
    logging.getLogger("DeepSpeed").setLevel(config.deepspeed.get("log_level", "warning").upper())
    ranks = start(world, config.batch.stages)
    heartbeat = Heartbeat(config.training.watchdog_seconds)
    manifest = choose_checkpoint(config.folder / "checkpoints", ranks)
    precision = agree_on_precision(config, manifest, ranks)
    config = with_precision(config, precision.bf16)
    if ranks.is_first:
        open_log(config)
        say_precision(precision, manifest)
        write_config(config, overrides, {"precision": str(precision), "text": corpus.text})
        keep_text(corpus, config.folder)
        for note in [*first_weights_notes(config, corpus), *unreached(config, config.last_step(corpus.train.samples_per_epoch))]:
            log.warning(note)
    engine, run = assemble(config, ranks, heartbeat, manifest, len_epoch=corpus.train.samples_per_epoch)
    with run.stop.excusing():
        train(engine, config, corpus, run)
    return _end(engine, config, run)


def agree_on_precision(config: RunConfig, manifest: dict[str, Any] | None, ranks: Ranks) -> Precision:
    """What all ranks compute in: rank 0 decides, since two processors may measure two things."""
    import torch

    from model.hardware.precision import choose_precision
    from training.checkpoints.checkpoint import saved_precision
    from training.launch.process_group import device_kind

    saved = saved_precision(manifest) if manifest else None
    decided = [choose_precision(config.precision, device_kind(), saved) if ranks.is_first else None]
    torch.distributed.broadcast_object_list(decided, src=0)
    assert decided[0] is not None
    return decided[0]


def say_precision(precision: Precision, manifest: dict[str, Any] | None) -> None:
    """One line on every start, and one more each where it is slow or was another before."""
    from training.checkpoints.checkpoint import saved_precision

    log.info(precision)
    if precision.warning:
        log.warning(precision.warning)
    if manifest and saved_precision(manifest) != precision.name:
        log.info("changed since the checkpoint: precision %s -> %s; the fp32 masters stay exact", saved_precision(manifest), precision.name)


def assemble(config: RunConfig, ranks: Ranks, heartbeat: Any, manifest: dict[str, Any] | None, len_epoch: int) -> tuple[Any, Run]:
    """Build the engine, at the step of the checkpoint that was chosen if there is one, and all that goes with it."""
    from deepspeed.accelerator import get_accelerator

    from model.flops import stage_table
    from model.pipeline import set_fp32_masters
    from training.checkpoints.checkpoint import load_checkpoint
    from training.checkpoints.reshard import needs_resharding, to_universal
    from training.launch.process_group import placement
    from training.optimizer.parameter_groups import apply_configured, settings_of
    from training.run.engine import build_engine, build_module
    from training.run.loop import Run
    from training.run.meter import Meter, peak_flops
    from training.run.watchdog import StopRequest
    from training.run_folder.outputs import Writer

    last_step = config.last_step(len_epoch)
    assert last_step is not None
    checkpoints = config.folder / "checkpoints"
    config = without_folder(config) if manifest else config
    parts = manifest["partition"] if manifest and measured_before(config, manifest, ranks) else None
    module = build_module(config, ranks, parts)
    universal = manifest is not None and needs_resharding(manifest, ranks, module.parts)
    engine = build_engine(module, config, ranks, load_universal=universal)
    lines = [*placement(ranks), *stage_table(config.model, module.parts, config.workload).splitlines()]
    for line in lines if ranks.is_first else ():
        log.info(line)
    if manifest:
        tag = to_universal(checkpoints, manifest["tag"], ranks) if universal else manifest["tag"]
        settings = settings_of(engine)
        load_checkpoint(engine, ranks, checkpoints, tag, universal=universal)
        changes = apply_configured(engine, settings, config.deepspeed["optimizer"].get("params", {}))
        if ranks.is_first:
            log.info("resuming %s from step %d of %d", config.folder, engine.global_steps, last_step)
            for change in changes:
                log.info("changed since the checkpoint: %s", change)
    elif config.model.initialize.method != "scratch":
        set_fp32_masters(module, config.model, config.run.seed)
    stop = StopRequest(heartbeat, get_accelerator().current_device_name(), config.training.stop_grace_seconds)
    meter = Meter(config, ranks, peak_flops(config.training.peak_tflops_per_device, config.uses_bf16))
    writer = Writer(config, last_step=last_step, start_step=engine.global_steps) if ranks.is_first else None
    heartbeat.beat()
    return engine, Run(ranks=ranks, last_step=last_step, heartbeat=heartbeat, stop=stop, meter=meter, writer=writer)


def measured_before(config: RunConfig, manifest: dict[str, Any], ranks: Ranks) -> bool:
    """A measured split comes out a little different each time; a resumed run keeps the one it was saved with."""
    same = manifest["topology"] == {"pipe": ranks.stages, "data": ranks.replicas}
    return same and config.deepspeed.get("pipeline", {}).get("partition") == "measured"


def _end(engine: Any, config: RunConfig, run: Run) -> int:
    if run.writer:
        run.writer.close()
        if engine.global_steps >= run.last_step:
            write_results(config, engine.global_steps, run.results)
    stopped_by = run.stop.signal_number
    stopped = run.stopped and engine.global_steps < run.last_step  # A stop that was asked for at the last step has stopped nothing.
    if stopped and run.ranks.is_first:
        log.info("stopped at step %d, which is saved; the same command goes on from there.", engine.global_steps)
    import torch

    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return 128 + (stopped_by or 15) if stopped else 0
