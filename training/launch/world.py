"""Which rank this process is: one answer for every way a job can be started. No torch here.

The deepspeed launcher and torchrun set RANK, LOCAL_RANK and WORLD_SIZE. `mpiexec` (PALS, Hydra, Open MPI) and `srun` set names
of their own and no rendezvous address, so the first host of the job's node list serves as the master.
"""

import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.hardware.processors import usable_processors
from training.launch.node_list import expand_nodelist


@dataclass(frozen=True)
class Launcher:
    """The variables of one way to start ranks, besides those that a job script can set itself."""

    name: str
    rank: str
    local_rank: str
    size: str
    local_size: tuple[str, ...] = ()
    """The first that is set counts."""
    mark: str = ""
    """Set if and only if this launcher started the process; the rank, where nothing is said."""


# In this order. Ranks of an mpiexec inside a Slurm job see the SLURM_ variables of the step that started mpiexec's own helper,
# so srun comes behind every mpiexec; but srun with PMI-2 sets PMI_RANK as well, so a PMI_RANK alone comes last.
LAUNCHERS = (
    Launcher("deepspeed or torchrun", "RANK", "LOCAL_RANK", "WORLD_SIZE"),
    Launcher("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", ("OMPI_COMM_WORLD_LOCAL_SIZE",)),
    Launcher("PALS", "PALS_RANKID", "PALS_LOCAL_RANKID", "PMI_SIZE", ("PALS_LOCAL_SIZE", "PMI_LOCAL_SIZE")),
    Launcher("Hydra", "PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", ("MPI_LOCALNRANKS",), mark="MPI_LOCALRANKID"),
    Launcher("srun", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", ("SLURM_STEP_TASKS_PER_NODE",), mark="SLURM_STEP_NUM_TASKS"),
    Launcher("PMI", "PMI_RANK", "PMI_LOCAL_RANK", "PMI_SIZE", ("PMI_LOCAL_SIZE",)),
)
DEFAULT_PORT = 29500


@dataclass(frozen=True, kw_only=True)
class World:
    """The place of this process in the job."""

    rank: int
    local_rank: int
    size: int
    local_size: int
    master_addr: str
    master_port: int
    port_is_held: bool = False
    """torchrun's agent keeps `master_port` open for torch.distributed from before the ranks start."""

    @property
    def rendezvous_port(self) -> int:
        """Where ranks meet before the process group exists: the port torch opens next, or the one beside it if that is held."""
        if not self.port_is_held:
            return self.master_port
        return self.master_port + 1 if self.master_port < 65535 else self.master_port - 1


def find_launcher(environment: Mapping[str, str]) -> Launcher | None:
    """The launcher that started this process as one rank of a job, or None if a person did. run_pretrain.sh asks the same in bash."""
    launcher = next((launcher for launcher in LAUNCHERS if environment.get(launcher.mark or launcher.rank)), None)
    # A shell that srun --pty opened is a step of one task: what is started in it is started by a person.
    return None if launcher and launcher.name == "srun" and environment[launcher.mark] == "1" else launcher


def find_world(environment: Mapping[str, str]) -> World:
    """Read the launcher's variables.

    Raises:
        ValueError: If a rank is set without the size of the world or of its host, or no address and port to meet at can be found.
    """
    launcher = find_launcher(environment)
    if launcher is None:
        raise ValueError("no launcher's variables (RANK, PMI_RANK, SLURM_PROCID ...) are set; start with ./run_pretrain.sh or deepspeed.")

    def number(*names: str, what: str) -> int:
        found = _first_number(environment, *names)
        if found is None or (found == 0 and names[0] != launcher.rank):  # Only a rank may be 0.
            raise ValueError(
                f"{launcher.mark or launcher.rank} is set (by {launcher.name}) but {' or '.join(names)} is not: {what} is unknown. "
                f"In the job script: export {names[-1]}=<{what}>. If no launcher started this: unset {launcher.mark or launcher.rank}."
            )
        return found

    rank = number(launcher.rank, what="the number of this rank")
    size = number(*dict.fromkeys((launcher.size, "WORLD_SIZE")), what="the number of all ranks")
    if rank >= size:
        raise ValueError(f"{launcher.rank} = {rank}, but the {size} ranks are numbered from 0 to {size - 1}.")
    local_size = (
        size if size == 1 else number(*launcher.local_size, "LOCAL_SIZE", "LOCAL_WORLD_SIZE", what="the number of ranks on each host")
    )
    local_rank = _first_number(environment, launcher.local_rank)
    return World(
        rank=rank,
        local_rank=rank % local_size if local_rank is None else local_rank,
        size=size,
        local_size=local_size,
        master_addr=environment.get("MASTER_ADDR") or _first_host(environment, alone=size == local_size),
        master_port=_port(environment.get("MASTER_PORT") or str(DEFAULT_PORT)),
        port_is_held=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def is_first_on_host(environment: Mapping[str, str]) -> bool:
    """True on the one rank of each host that says what is wrong before ranks know of each other."""
    launcher = find_launcher(environment)
    return launcher is None or environment.get(launcher.local_rank, "0") == "0"


def _first_number(environment: Mapping[str, str], *names: str) -> int | None:
    """Slurm writes "6(x32)" for six on each of 32 nodes."""
    for name in names:
        found = re.match(r"\d+", environment.get(name, ""))
        if found:
            return int(found.group())
    return None


def _port(said: str) -> int:
    if not (said.isascii() and said.isdigit() and 0 < int(said) < 1 << 16):
        raise ValueError(f"MASTER_PORT = {said} is not a port. Give a number from 1 to 65535, or leave it out for {DEFAULT_PORT}.")
    return int(said)


def _first_host(environment: Mapping[str, str], *, alone: bool) -> str:
    if alone:
        return "127.0.0.1"
    nodes = Path(environment.get("PBS_NODEFILE", ""))
    if nodes.is_file() and (names := nodes.read_text(encoding="utf-8").split()):
        return names[0]
    listed = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if listed:
        try:
            return expand_nodelist(listed)[0]
        except ValueError as error:
            raise ValueError(f"Slurm's node list: {error}. In the job script: export MASTER_ADDR=<the first host>.") from error
    raise ValueError(
        "no MASTER_ADDR in the environment of this rank, and no node list of PBS or Slurm that it can read: the ranks cannot meet. "
        "In the job script: export MASTER_ADDR=<the first host>; under PBS that is $(head -n 1 $PBS_NODEFILE)."
    )


def check_placement(world: World, stages: int) -> None:
    """A whole pipeline must sit inside one host: activations between hosts are what makes a pipeline slow.

    Raises:
        ValueError: If the ranks of a host cannot be cut into whole pipelines.
    """
    if world.local_size % stages:
        raise ValueError(
            f"{world.local_size} ranks on one host, but pipeline.stages = {stages}: a pipeline would lie across hosts. "
            f"Start {stages} ranks (or a multiple) on every host: slots={stages} in the hostfile, mpiexec -ppn, srun --ntasks-per-node."
        )


def own_addresses() -> list[str]:
    """What this host's own name resolves to; nothing if it does not."""
    try:
        return sorted({str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)})
    except OSError:
        return []


def is_loopback(addresses: Sequence[str]) -> bool:
    """Whether no other host can connect: ranks take an IPv4 address where there is one."""
    preferred = [address for address in addresses if ":" not in address] or addresses
    return all(address.startswith("127.") or address == "::1" for address in preferred)


def has_loopback_name(world: World, environment: Mapping[str, str]) -> bool:
    """Whether ranks on CPUs (gloo) would wait for their peers of other hosts at a loopback address: that of their host's own name.

    Of two such hosts neither can connect to the other. One alone may be lucky: of two ranks the one with the greater address connects.
    """
    if world.size == world.local_size or environment.get("GLOO_SOCKET_IFNAME"):
        return False
    from model.hardware.devices import find_devices

    return is_loopback(own_addresses()) and find_devices(environment).is_cpu


def check_threads(environment: Mapping[str, str]) -> None:
    """Refuse an OMP_NUM_THREADS that is no number, such as the empty one of a job script that took it from a variable that is not set.

    Raises:
        ValueError: If it is set to anything but numbers above 0, one for each level of nesting.
    """
    said = environment.get("OMP_NUM_THREADS", "1")
    if not re.fullmatch(r" *0*[1-9]\d* *(, *0*[1-9]\d* *)*", said):
        raise ValueError(f'OMP_NUM_THREADS = "{said}" is not a number of threads. Give one of 1 or more, or unset it.')


def default_environment(local_size: int, shared: int) -> dict[str, str]:
    """What a rank needs in its environment unless the user said otherwise.

    A local start hands it to the ranks. Under other launchers a rank sets it for itself before DeepSpeed is imported; torch may have been
    imported by then (the token store needs it), so `process_group.start` also tells torch its number of threads.

    `shared` processors are divided among the `local_size` ranks of this host. One that its launcher has bound to some of them takes these.
    """
    threads = max(1, min(usable_processors(), shared // local_size))
    return {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
