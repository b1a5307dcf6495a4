"""Start a run on this machine: check, prepare the data, launch the ranks, show what came out.

A person's `./run_pretrain.sh` comes here. Ranks that a cluster's launcher started go to `pretrain.py` directly.
"""

import base64
import contextlib
import json
import logging
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ds_configs
from ds_configs.commands import command, leaving, listen, say
from model.hardware.processors import usable_processors
from training.checkpoints.find_and_verify import published
from training.config import RunConfig, resolve
from training.config_remarks import unreadable
from training.launch.arguments import parse
from training.launch.launcher_process import run_to_the_end
from training.launch.local_layout import lay_out
from training.launch.process_tree import STARTER, bound
from training.launch.world import check_threads, default_environment
from training.preflight import check_first_weights
from training.run_folder.compatibility import check_folder, check_text
from training.run_folder.monitors import check_outputs, monitor_folder
from training.run_folder.progress import finished_step, last_step_of, read_results

DEFAULT_CONFIG = "ds_configs/quickstart.json"
PORTS = range(10_000, 32_768)  # Between those of services and those of net.ipv4.ip_local_port_range.
PORTS_TRIED = 20


@command()
def main(arguments: Sequence[str]) -> int:
    """Run CONFIG (default: the quickstart) here. Returns the exit code."""
    listen(leaving("stopped before training began. The same command starts again; what is prepared so far is kept."))
    path, overrides = parse(arguments, DEFAULT_CONFIG)
    config, needed = resolve_here(path, overrides)
    check_threads(os.environ)
    check_folder(config)
    check_outputs(config)
    check_first_weights(config)  # The preparation can take hours.
    _prepare(config)
    finished = finished_step(config, last_step_of(config, _samples_per_epoch(config)))
    if finished is None:
        code = launch(config, [path, *needed])
        if code:
            return code
    show(config, read_results(config), overrides, again=finished is not None)
    return 0


def resolve_here(path: str, overrides: Sequence[str]) -> tuple[RunConfig, list[str]]:
    """Resolve for the devices of this machine. Returns the run and the overrides that its ranks need, to come to the same.

    Raises:
        ValueError: If the configuration is wrong or pins more ranks than this machine can run.
    """
    loaded = ds_configs.read(path, overrides)
    resolve(loaded)  # With all that is wrong, before torch, whose import takes seconds, is asked for devices.
    from model.hardware.devices import find_devices

    try:
        stages, replicas, note = lay_out(loaded.values, find_devices())
    except ValueError as error:
        raise ds_configs.ConfigError(f"{path}: {error}") from error
    if note:
        print(note, file=sys.stderr)
    needed = list(overrides)
    if stages != loaded.values.get("pipeline", {}).get("stages", 1):
        needed.append(f"pipeline.stages={stages}")
    return resolve(ds_configs.read(path, needed), stages * replicas), needed


def _prepare(config: RunConfig) -> None:
    from data.documents import DataError
    from data.prepare import plan, prepare_planned, way_on

    # A large corpus takes hours, and a second start waits for the first: both are said.
    logging.getLogger("data").setLevel(logging.INFO)
    try:
        meant = plan(config.data)
        check_text(config, meant.identity)  # Before a preparation that may take hours.
        prepare_planned(config.data, meant)
    except OSError as error:
        raise DataError(way_on(error)) from error


def _samples_per_epoch(config: RunConfig) -> int | None:
    if config.training.epochs is None:
        return None
    from data.batches.datasets import open_datasets

    return open_datasets(config.data, seed=config.run.seed).train.samples_per_epoch


def launch(config: RunConfig, arguments: Sequence[str]) -> int:
    """Start the ranks with DeepSpeed's launcher and wait for them."""
    from model.hardware.devices import find_devices

    ranks = config.batch.world_size
    words, environment = launcher(ranks)
    print(f"{config.path} -> {config.folder}: {ranks} processes on {find_devices()}", file=sys.stderr, flush=True)
    code, stopped = run_to_the_end([*words, "run_pretrain.sh", *arguments], environment, config.training.stop_grace_seconds)
    if code not in (0, 2) and published(config.folder):  # A mistake stays one.
        # Ranks that stop for a file or a time limit have had no signal, and end as after SIGTERM.
        how = "Stopped" if stopped or code == 128 + signal.SIGTERM else f"Failed (exit code {code})"
        say(f"{how}. The same command goes on from the last checkpoint in {config.folder}.")
    return code


def launcher(ranks: int) -> tuple[list[str], dict[str, str]]:
    """DeepSpeed's launcher of one host for this many ranks here: its command, to which the script is to be added, and its environment."""
    from model.hardware.devices import ACCELERATORS, find_devices

    kind = find_devices().kind
    environment = {**default_environment(ranks, usable_processors()), **os.environ}
    environment |= {"DS_ACCELERATOR": kind, STARTER: str(os.getpid())}
    # It joins the slots to a mask for all its ranks: as many parts of the mask that is set here, so that what that hides stays hidden.
    mask = environment.get(ACCELERATORS.get(kind, ""))
    names = mask.split(",", ranks - 1) if mask else list(range(ranks))
    slots = base64.urlsafe_b64encode(json.dumps({"localhost": names}).encode()).decode()
    words = [sys.executable, "-m", "deepspeed.launcher.launch", "--log_level", "error", "--world_info", slots]
    return [*words, "--master_addr", "127.0.0.1", "--master_port", str(free_port())], environment


def free_port() -> int:
    """A free port. Ranks take it seconds later, so it is none of those that Linux gives to whoever asks for just any."""
    for port in (*random.SystemRandom().sample(PORTS, PORTS_TRIED), 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise OSError("no port is free on 127.0.0.1")


def show(config: RunConfig, results: Mapping[str, Any], overrides: Sequence[str], *, again: bool) -> None:
    """The result, a passage, and what to do next."""
    print(f"\n{config.folder} {'was finished before' if again else 'is finished'}: step {results.get('step', '?')}.")
    if results.get("valid/bits_per_char") is not None:
        print(f"Held-out text: {results['valid/bits_per_char']:.3f} bits per character (loss {results['valid/loss']:.3f} per token).")
    python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else sys.executable
    samples = sorted((config.folder / "samples").glob("*.txt"))
    prompt = config.training.sample_prompt or (samples[-1].read_text(encoding="utf-8").strip()[:8] if samples else "")
    # One word, as a prompt may begin with a hyphen; nothing to begin with begins a document.
    generate = [python, "-m", "inference.generate", str(config.folder), f"--prompt={prompt}" if prompt else "--new-document"]
    barred = unreadable(config)
    if prompt and not again and not barred:
        print("\nA passage it writes:\n", flush=True)
        subprocess.run(bound([*generate, "--new-tokens", "80", "--seed", str(config.run.seed)]), check=False)
    print(f"\nNext, in {Path.cwd()}:")
    if board := monitor_folder(config, "tensorboard"):
        below = config.run.directory if board.is_relative_to(config.folder) else str(board)
        print(f"  watch the curves    {shlex.join([python, '-m', 'tensorboard.main', '--logdir', below])}")
    print(f"  write more          {barred[0] if barred else shlex.join(generate)}")
    if config.training.steps is not None:
        kept = [override for override in overrides if not override.startswith("training.steps=")]
        steps = 2 * max(config.training.steps, results.get("step", 0))  # It may be finished because fewer are asked for than it has.
        print(f"  train on            {shlex.join(['./run_pretrain.sh', str(config.path), *kept, f'training.steps={steps}'])}")
    sys.stdout.flush()
