"""Ranks of tests that are not about starting them: on CPUs, with one thread each, forked from one process that has imported DeepSpeed.

A test calls `run_script`; the script that it names calls `fork`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from typing import Any

from tests import processes
from tests.forks import Forked


def run_script(module: str, *arguments: object) -> str:
    """Run a module of the tests in a process of its own, forked from what has imported DeepSpeed, and insist on success.

    Returns what it printed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    process = Forked(module, *map(str, arguments), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = process.communicate(timeout=processes.LIMIT_SECONDS)
    finally:
        processes.end(process)
    assert process.returncode == 0, output + errors
    return str(output)


def fork(main: Callable[..., None], *arguments: Any, size: int, stages: int) -> None:
    """Call `main` with the `Ranks` of each process of a job, and what else it is to be given; wait for all of them."""
    import torch

    from training.launch.local import free_port

    torch.set_num_threads(1)
    given = (main, arguments, size, stages, free_port())
    torch.multiprocessing.start_processes(_rank, args=given, nprocs=size, start_method="fork")  # type: ignore[attr-defined]


def _rank(rank: int, main: Callable[..., None], arguments: tuple[Any, ...], size: int, stages: int, port: int) -> None:
    import torch

    from training.launch.process_group import prepare_environment, start
    from training.launch.world import World

    world = World(rank=rank, local_rank=rank, size=size, local_size=size, master_addr="127.0.0.1", master_port=port)
    prepare_environment(world)
    main(start(world, stages), *arguments)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
