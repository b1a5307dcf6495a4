"""Start-up of one rank: device, process group, topology, seeds. What differs between kinds of devices when ranks start is here."""

import contextlib
import io
import json
import logging
import os
import random
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from model.hardware.devices import ACCELERATORS, find_devices
from model.hardware.processors import shared_processors
from training.launch.world import World, default_environment

log = logging.getLogger(__name__)

POLL_SECONDS = 0.01


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Where this rank stands in the grid of replicas x stages."""

    world: World
    replica: int
    stage: int
    replicas: int
    stages: int

    @property
    def is_first(self) -> bool:
        """Rank 0: the one that logs and publishes."""
        return self.world.rank == 0

    @property
    def topology(self) -> dict[str, int]:
        """As manifests of checkpoints say it."""
        return {"pipe": self.stages, "data": self.replicas}


def prepare_environment(world: World) -> None:
    """Set what torch and DeepSpeed read at import. Nothing a user has set is changed."""
    # Not what this rank may use: mpiexec and srun may have bound it to its own part, which is not divided again.
    for name, value in default_environment(world.local_size, shared_processors()).items():
        os.environ.setdefault(name, value)
    os.environ |= {
        "RANK": str(world.rank),
        "LOCAL_RANK": str(world.local_rank),
        "WORLD_SIZE": str(world.size),
        "LOCAL_SIZE": str(world.local_size),
        "MASTER_ADDR": world.master_addr,
        "MASTER_PORT": str(world.master_port),
        "DS_ACCELERATOR": find_devices().kind,
    }


def device_index(world: World, environment: Mapping[str, str]) -> int | None:
    """Which of the devices that this rank sees is its own; None on a CPU.

    Raises:
        ValueError: If the host has more ranks than devices, or not of the kind that DS_ACCELERATOR asks for.
    """
    devices = find_devices(environment)
    if devices.is_cpu:
        return None
    mask = environment.get(ACCELERATORS[devices.kind])
    if devices.count == 1 and mask and "," not in mask:
        return 0  # srun, or a wrapper of mpiexec, showed each rank a device of its own.
    if world.local_size > devices.count:
        raise ValueError(
            f"{world.local_size} ranks on a host with {devices}. Start one rank a device (slots= in the hostfile, mpiexec -ppn). "
            "On Intel GPUs of two tiles ZE_FLAT_DEVICE_HIERARCHY=FLAT shows each tile as a device, COMPOSITE each card."
        )
    return world.local_rank


def start(world: World, stages: int) -> Ranks:
    """Join the process group. Placement was checked before (`world.check_placement`), and so were devices (`device_index`)."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    # DeepSpeed 0.19.8 calls torch's all-gather by an old name: two lines from every rank. Remove with the next upgrade.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor", category=FutureWarning)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].partition(",")[0]))  # "4,2" says it of nested regions too.
    # Or init_distributed compiles an operator: a minute, a compiler, a lock that outlives a kill. Losses are the same. It is all that
    # DeepSpeed ever looks up in this table, which it would fill by running a compiler on every rank: half a second of a start.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    if (index := device_index(world, os.environ)) is not None:
        get_accelerator().set_device(index)
        # DeepSpeed takes LOCAL_RANK for the device's index, and wants Open MPI's variable to be the same.
        os.environ["LOCAL_RANK"] = str(index)
        os.environ.pop("OMPI_COMM_WORLD_LOCAL_RANK", None)
    deepspeed.init_distributed(backend(), auto_mpi_discovery=False, verbose=False, rank=world.rank, world_size=world.size)
    # oneCCL can hang when the first operation of a group is a point-to-point one; a collective first is harmless elsewhere.
    deepspeed.comm.all_reduce(torch.zeros(1, device=get_accelerator().current_device_name()))
    return Ranks(world=world, replica=world.rank // stages, stage=world.rank % stages, replicas=world.size // stages, stages=stages)


def backend() -> str:
    """What ranks talk through: what DeepSpeed takes for the accelerator, and gloo on CPUs."""
    from deepspeed.accelerator import get_accelerator

    return "gloo" if get_accelerator().device_name() == "cpu" else str(get_accelerator().communication_backend_name())


def gather(value: Any) -> list[Any]:
    """What every rank of the job gives, by rank. All of them call it."""
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def tell_first(topic: str, value: Any) -> None:
    """Leave a value that JSON knows for rank 0 in the job's store: no collective, so any thread may do it. Once a topic, on every rank.

    Raises:
        RuntimeError: If rank 0, which holds the store, is gone.
    """
    store = torch.distributed.distributed_c10d._get_default_store()
    store.set(f"{topic}/{torch.distributed.get_rank()}", json.dumps(value))
    store.add(f"{topic}/told", 1)


def hear_all(topic: str, size: int) -> list[Any]:
    """On rank 0: what each of `size` ranks left, by rank, as soon as all did."""
    store = torch.distributed.distributed_c10d._get_default_store()
    # Not `store.wait`: the main thread could not use the store meanwhile.
    while store.add(f"{topic}/told", 0) < size:
        time.sleep(POLL_SECONDS)
    keys = [f"{topic}/{rank}" for rank in range(size)]
    values = [json.loads(store.get(key)) for key in keys]
    for key in [*keys, f"{topic}/told"]:
        store.delete_key(key)
    return values


def by_rank(own: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """What every rank gives, a few numbers, on every rank: (n,) of each -> (replicas, stages, n), on the host. All of them call it."""
    from deepspeed import comm as dist
    from deepspeed.accelerator import get_accelerator

    table = torch.zeros(ranks.world.size, len(own), dtype=own.dtype, device=get_accelerator().current_device_name())
    table[ranks.world.rank] = own
    dist.all_reduce(table)
    return table.view(ranks.replicas, ranks.stages, len(own)).cpu()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep DeepSpeed's start-up prints (memory before and after each buffer) off the terminal; its errors are still logged."""
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def placement(ranks: Ranks) -> list[str]:
    """One line a replica, read back from the running group: its ranks and their hosts."""
    seen = gather((ranks.replica, socket.gethostname()))
    lines = []
    for replica in range(ranks.replicas):
        hosts = {rank: host for rank, (its_replica, host) in enumerate(seen) if its_replica == replica}
        lines.append(f"pipeline {replica}: ranks {min(hosts)}-{max(hosts)} on {','.join(dict.fromkeys(hosts.values()))}")
    return lines


def seed_rank(seed: int, ranks: Ranks) -> None:
    """Different dropout masks on every rank, the same ones in every run. Weights are seeded by layer, not here."""
    mixed = int(np.random.SeedSequence([seed, ranks.world.rank]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
