"""Which rank this process is: one answer for every way a job can be started. No torch here.

The deepspeed launcher and torchrun set RANK, LOCAL_RANK and WORLD_SIZE. `mpiexec` (PALS, Hydra, Open MPI) and `srun` set names
of their own and no rendezvous address, so the first host of the job's node list serves as the master.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# (rank, local rank, world size, ranks on this host), in the order they are looked for.
LAUNCHERS = {
    "deepspeed or torchrun": ("RANK", "LOCAL_RANK", "WORLD_SIZE", ("LOCAL_SIZE", "LOCAL_WORLD_SIZE")),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", ("OMPI_COMM_WORLD_LOCAL_SIZE",)),
    "PALS": ("PALS_RANKID", "PALS_LOCAL_RANKID", "PMI_SIZE", ("PALS_LOCAL_SIZE",)),
    "Hydra": ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", ("MPI_LOCALNRANKS",)),
    "Slurm": ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", ("SLURM_NTASKS_PER_NODE",)),
}


@dataclass(frozen=True, kw_only=True)
class World:
    """The place of this process in the job."""

    rank: int
    local_rank: int
    size: int
    local_size: int
    master_addr: str
    master_port: int

    def environment(self) -> dict[str, str]:
        """The variables torch.distributed and DeepSpeed read."""
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_SIZE": str(self.local_size),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }


def is_launched(environment: Mapping[str, str]) -> bool:
    """True if a launcher started this process as one rank of a job."""
    return any(names[0] in environment for names in LAUNCHERS.values())


def find_world(environment: Mapping[str, str]) -> World:
    """Read the launcher's variables.

    Raises:
        ValueError: If a rank is set without the size of the world, or no address to meet at can be found.
    """
    launcher = next((name for name, variables in LAUNCHERS.items() if variables[0] in environment), None)
    if launcher is None:
        raise ValueError("no launcher's variables (RANK, PMI_RANK, SLURM_PROCID ...) are set; start with ./run_pretrain.sh or deepspeed.")
    rank_name, local_name, size_name, local_size_names = LAUNCHERS[launcher]
    if size_name not in environment:
        raise ValueError(f"{rank_name} is set (by {launcher}) but {size_name} is not: the size of the job is unknown. Set {size_name}.")
    rank, size = int(environment[rank_name]), int(environment[size_name])
    local_size = _first_number(environment, local_size_names) or size
    local_rank = int(environment.get(local_name, rank % local_size))
    port = int(environment.get("MASTER_PORT", 29500))
    address = environment.get("MASTER_ADDR") or _first_host(environment, alone=size == local_size)
    return World(rank=rank, local_rank=local_rank, size=size, local_size=local_size, master_addr=address, master_port=port)


def _first_number(environment: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    """Slurm writes "6(x32)" for six on each of 32 nodes."""
    for name in names:
        found = re.match(r"\d+", environment.get(name, ""))
        if found:
            return int(found.group())
    return None


def _first_host(environment: Mapping[str, str], *, alone: bool) -> str:
    nodes = environment.get("PBS_NODEFILE")
    if nodes and Path(nodes).is_file():
        return Path(nodes).read_text(encoding="utf-8").split()[0]
    listed = environment.get("SLURM_JOB_NODELIST")
    if listed:
        # "node[017-020,033],other5": the first name with the first number of its bracket.
        return re.sub(r"\[(\d+)[^\]]*\].*", r"\1", listed).split(",")[0]
    if alone:
        return "127.0.0.1"
    raise ValueError(
        "no MASTER_ADDR, PBS_NODEFILE or SLURM_JOB_NODELIST in the environment: ranks cannot meet. Set MASTER_ADDR to the first host."
    )


def check_placement(world: World, stages: int) -> None:
    """A whole pipeline must sit inside one host: activations between hosts are what makes a pipeline slow.

    Raises:
        ValueError: If the ranks of a host cannot be cut into whole pipelines.
    """
    if world.local_size % stages:
        raise ValueError(
            f"host {socket.gethostname()} has {world.local_size} ranks, but pipeline.stages = {stages}: a pipeline would lie across hosts. "
            f"Write slots={stages} (or a multiple of it) for every host of the hostfile."
        )


def default_environment(world: World) -> dict[str, str]:
    """What a rank needs in its environment unless the user said otherwise; read before torch is imported."""
    threads = max(1, (os.cpu_count() or 1) // max(1, world.local_size))
    return {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
