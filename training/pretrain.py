"""One rank of a run: `run_pretrain.sh` starts it through DeepSpeed's launcher, mpiexec, srun or torchrun.

Everything that can be wrong is found out before the process group exists, so that no rank waits for one that has left.
"""

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import ds_configs
from ds_configs.commands import leaving, listen, say
from training.checkpoints.find_and_verify import CheckpointError
from training.config import RunConfig, resolve, with_precision
from training.config_remarks import remarks_on
from training.launch.arguments import check_quotes, parse
from training.launch.preflight_reports import Report
from training.launch.process_tree import watch_launcher
from training.launch.rendezvous import agree_to_start
from training.launch.world import World, check_threads, find_world, has_loopback_name, is_first_on_host
from training.preflight import ReadyRun, preflight
from training.run_folder.progress import remove_unused, write_results
from training.run_folder.provenance import keep_text, write_config

if TYPE_CHECKING:
    from training.run.loop import Run

log = logging.getLogger("training")

DEFAULT_CONFIG = "ds_configs/hongloumeng_500m.json"
EXIT_USER_ERROR = 2
# Hundreds of ranks read Python's files from one file system first.
RENDEZVOUS_SECONDS = 300.0


def main(arguments: Sequence[str]) -> int:
    """Run this rank to its end. Returns the exit code: 0 finished, 2 a mistake of the user's, 1 a failure, 128 + n stopped by signal n."""
    listen(leaving(None))
    watch_launcher(os.environ)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        world = find_world(os.environ)
    except ValueError as error:
        if is_first_on_host(os.environ):
            print(f"run_pretrain.sh: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    path, overrides = parse(arguments, DEFAULT_CONFIG)
    ready = None
    try:
        check_quotes(overrides, os.environ)
        check_threads(os.environ)
        config = resolve(ds_configs.read(path, overrides), world.size)
        ready = preflight(config, world, overrides)
        from training.launch.process_group import device_index  # With torch, so only now.

        device_index(world, os.environ)  # Once all had met, a device that is not here would be a failure, and tried again by a supervisor.
        loopback = has_loopback_name(world, os.environ)
        report = Report(stages=config.batch.stages, folder=config.folder, facts=ready.facts(), loopback=loopback)
    except (ValueError, OSError) as error:
        report = Report(problem=str(error))
        if world.rank == 0:
            say(str(error))
    start = agree_to_start(world, report, RENDEZVOUS_SECONDS, say)
    if ready is None or not start:
        if ready is not None and world.rank == 0:
            remove_unused(ready.config.folder)
        return EXIT_USER_ERROR
    return _exit_without_cleanup(_run(ready, overrides, world))


def _run(ready: ReadyRun, overrides: Sequence[str], world: World) -> int:
    if ready.finished is not None:
        if world.rank == 0:
            print(f"{ready.config.folder} is finished: step {ready.finished} of {ready.last_step}.", file=sys.stderr)
        return 0
    from training.launch.process_group import prepare_environment
    from training.run.failure import say_failure

    try:
        prepare_environment(world)  # Before deepspeed is imported: it reads DS_ACCELERATOR then.
        return _train(ready, overrides, world)
    except (RuntimeError, OSError, ValueError) as error:
        if os.environ.get("PRETRAIN_TRACEBACK"):
            traceback.print_exc()
        say_failure(world, error)
        return EXIT_USER_ERROR if isinstance(error, CheckpointError) else 1  # No other start finds a good one.
    except Exception:  # A mistake of ours: the whole trace is what helps.
        traceback.print_exc()
    return 1


def _exit_without_cleanup(code: int) -> NoReturn:
    """End this rank without Python's own end.

    With peers inside a collective, the process group's clean-up would wait for them: leaving is what frees them. And threads that still
    wait in C++ (gloo's, the watchdog's) have aborted a rank that had finished ("terminate called without an active exception").
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _train(ready: ReadyRun, overrides: Sequence[str], world: World) -> int:
    from training.checkpoints.load import choose_checkpoint
    from training.health.watchdog import Heartbeat
    from training.launch.process_group import start
    from training.run.assembly import agree_on_precision, assemble
    from training.run.loop import train
    from training.run_folder.outputs import open_log

    config, datasets = ready.config, ready.datasets
    # deepspeed's own start-up chatter is not ours to repeat on 192 ranks.
    logging.getLogger("DeepSpeed").setLevel(config.deepspeed.get("log_level", "warning").upper())
    heartbeat = Heartbeat(config.training.watchdog_seconds)  # Before the group: a peer that is lost while it forms is waited for there.
    ranks = start(world, config.batch.stages)
    heartbeat.beat()
    if ranks.is_first:
        open_log(config)
    checkpoint = choose_checkpoint(config.folder, ranks)
    precision = agree_on_precision(config, checkpoint, ranks)
    config = with_precision(config, precision.bf16)
    if ranks.is_first:
        write_config(config, overrides, {"precision": str(precision), "text": datasets.text})
        keep_text(datasets, config.folder)
        for note in [*ready.notes, *remarks_on(config, ready.last_step)]:
            log.warning(note)
    engine, run = assemble(config, ranks, heartbeat, checkpoint, ready.last_step)
    with run.stop.excusing():
        train(engine, config, datasets, run)
    return _end(engine, config, run)


def _end(engine: Any, config: RunConfig, run: "Run") -> int:
    if run.outputs:
        run.outputs.close()
        if engine.global_steps >= run.last_step:
            write_results(config, engine.global_steps, run.results)
    stopped = run.stopped and engine.global_steps < run.last_step  # A stop that was asked for at the last step has stopped nothing.
    if stopped and run.ranks.is_first:
        log.info("stopped at step %d, which is saved; the same command goes on from there.", engine.global_steps)
    import torch

    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return 128 + (run.stop.signal_number or 15) if stopped else 0
