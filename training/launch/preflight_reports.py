"""What the ranks report of their preflight checks, and what follows from it. How reports get to rank 0 is `rendezvous.py`."""

import errno
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ds_configs.errors import few
from training.diagnosis.lost_hosts import hosts_of_ranks
from training.launch.world import World

LONGEST_TEXT = 4000


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a rank brings to the rendezvous."""

    problem: str | None = None
    stages: int = 1
    folder: Path | None = None
    """The run's folder, which all hosts must share; None where the configuration could not be read."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What must be the same on every rank, by name."""
    loopback: bool = False
    """Whether ranks of other hosts would have to connect to a loopback address (`world.has_loopback_name`)."""


def is_report(message: Mapping[str, Any], size: int) -> bool:
    """True for exactly the fields of a report, each of its type, with names fit to be printed."""
    if message.keys() != {"rank", "host", "problem", "facts", "loopback", "secret"}:
        return False
    rank, facts = message["rank"], message["facts"]
    texts = [message["secret"], message["problem"] or "", *(facts.values() if isinstance(facts, dict) else [None])]
    return (
        type(rank) is int
        and 0 < rank < size
        and isinstance(message["loopback"], bool)
        and isinstance(message["host"], str)
        and re.fullmatch(r"[\w.-]{1,253}", message["host"], re.ASCII) is not None
        and all(isinstance(text, str) and len(text) <= LONGEST_TEXT for text in texts)
        and all(text.isprintable() for text in facts.values())
    )


def ranks_to_speak(own: Report, reports: Mapping[int, Mapping[str, Any]]) -> set[int]:
    """One rank for each different problem; the one that rank 0 has as well is said already."""
    first: dict[str, int] = {}
    for rank, report in sorted(reports.items()):
        if report["problem"] and report["problem"] != own.problem:
            first.setdefault(report["problem"], rank)
    return set(first.values())


def reasons_against(
    world: World, own: Report, reports: Mapping[int, Mapping[str, Any]], limit_seconds: float, lost: Mapping[int, str]
) -> list[str]:
    """What rank 0 has to say against a start, one line each, causes first. Problems of single ranks are theirs to say.

    Args:
        world: The place of rank 0.
        own: What rank 0 brings.
        reports: What the others brought, by rank.
        limit_seconds: How long they could come.
        lost: The hosts of ranks that could not be started (`lost_hosts`), by rank.
    """
    if own.problem or any(report["problem"] for report in reports.values()):
        return []
    here = socket.gethostname()
    blind = dict.fromkeys(report["host"] for report in reports.values() if not report["sees"])
    lines = []
    if blind:
        lines.append(
            f"host {', '.join(blind)} does not see {own.folder}, where {here} has just written: "
            "run.directory must be on a path all hosts share."
        )
    for name, value in own.facts.items():
        other = next((report for report in reports.values() if report["facts"].get(name) != value), None)
        if other:
            lines.append(
                f"host {other['host']}: {name}: {other['facts'].get(name)}, but on {here}: {value}. "
                "All hosts must use the same checkout, .venv and data."
            )
    unreachable = dict.fromkeys([*[here] * own.loopback, *(report["host"] for report in reports.values() if report["loopback"])])
    if len(unreachable) > 1 and not lines:
        lines.append(
            f"the own names of hosts {few([*unreachable])} resolve to loopback addresses, so their ranks cannot connect to "
            "each other. Put GLOO_SOCKET_IFNAME=<interface> into .deepspeed_env, or give each name its network address in /etc/hosts."
        )
    absent = [rank for rank in range(1, world.size) if rank not in reports]
    if absent and not lines:
        gone = {rank: lost[rank] for rank in absent if rank in lost}
        lines.append(_describe_lost(gone) if gone else _describe_absent(world, absent, limit_seconds))
    return lines or _split_pipelines(own.stages, {0: here, **{rank: report["host"] for rank, report in reports.items()}})


def _describe_lost(gone: Mapping[int, str]) -> str:
    hosts = list(dict.fromkeys(gone.values()))
    return (
        f"host {few(hosts)}: rank {few(list(gone))} could not be started there: the launcher has no ssh to it. "
        "What it said is above. Mend it, or take it out of the hostfile; python -m training.doctor --hostfile FILE says what is wrong."
    )


def _describe_absent(world: World, absent: Sequence[int], limit_seconds: float) -> str:
    named = hosts_of_ranks()
    names = list(dict.fromkeys(named[rank] for rank in absent)) if len(named) == world.size else []
    # Under other launchers all hosts have as many ranks as this one.
    numbers = sorted({rank // world.local_size + 1 for rank in absent})
    where = f"host {few(names)}" if names else f"host number {few(numbers)} of the job"
    address = f"{world.master_addr}:{world.rendezvous_port}"
    look = where_to_look(world) or f"Look above for what ssh or the launcher said of them, and whether they can reach {address}."
    return f"{len(absent)} of {world.size} ranks ({few(absent)}; {where}) did not come within {limit_seconds:.0f} s. {look}"


def where_to_look(world: World) -> str:
    """What is wrong if all ranks are on this host and are to meet at an address that it has not; nothing if that is all right."""
    if world.size > world.local_size:
        return ""
    try:
        family, kind, _, _, address = socket.getaddrinfo(world.master_addr, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:  # Another host's, or one that is forwarded here.
            return (
                f"All are on this host, {socket.gethostname()}, but are to meet at {world.master_addr}, which is no address of it. Of a "
                "hostfile with one host DeepSpeed starts the ranks where it is typed: type it on that host, or put --force_multi behind "
                "deepspeed."
            )
    return ""


def _split_pipelines(stages: int, hosts: Mapping[int, str]) -> list[str]:
    """Activations between hosts are what makes a pipeline slow: its ranks must be neighbours on one host."""
    for first in range(0, len(hosts), stages):
        members = list(dict.fromkeys(hosts[rank] for rank in range(first, first + stages)))
        if len(members) > 1:
            return [
                f"ranks {first}-{first + stages - 1} are one pipeline, but they are on {', '.join(members)}. "
                "Number the ranks host by host: mpiexec -ppn N (Open MPI: --map-by slot), srun --distribution=block."
            ]
    return []
