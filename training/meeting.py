"""All ranks meet once before the process group exists: what is wrong anywhere is said once, and nobody waits for the absent.

Without it a rank that finds a mistake of its own (a checkout or a token store its host does not see) leaves in silence, and the
others wait half an hour for it inside torch. Plain sockets, on the port torch.distributed opens right after, so a port that is
taken or closed to other hosts shows here too. Rank 0 listens; every other rank brings what it found and gets the verdict.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.world import World

log = logging.getLogger(__name__)

# Once it is clear that there will be no start, ranks that are late for the meeting have this long to hear of it.
PATIENCE_SECONDS = 60.0
# How long a connection may stay silent before it is taken for something else than a rank of this job.
ANSWER_SECONDS = 30.0
REMIND_SECONDS = 30.0
# A network file system may show a new file a moment later.
SIGHT_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """What a rank brings to the meeting."""

    problem: str | None = None
    stages: int = 1
    folder: Path | None = None
    """The run's folder, which all hosts must share; None where the configuration could not be read."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What must be the same on every rank, by name."""


def meet(world: World, own: Arrival, limit_seconds: float) -> list[str] | None:
    """Wait for all ranks of the job and agree whether to start.

    Args:
        world: The place of this rank.
        own: What this rank found.
        limit_seconds: How long ranks may take to come.

    Returns:
        None to start. Otherwise the lines this rank has to print: on rank 0 what is wrong elsewhere (its own problem it has
        printed before), on other ranks usually nothing.
    """
    if world.size == 1:
        return [] if own.problem else None
    return _receive(world, own, limit_seconds) if world.rank == 0 else _report(world, own, limit_seconds)


def _receive(world: World, own: Arrival, limit_seconds: float) -> list[str] | None:
    try:
        server = _listen(world.master_port)
    except OSError as error:
        if own.problem:
            return []
        why = os.strerror(error.errno or 0)
        return [
            f"host {socket.gethostname()}: port {world.master_port} cannot be opened for the ranks to meet ({why}). "
            "Another job? Give another port: deepspeed --master_port N, or MASTER_PORT=N."
        ]
    with _token(own) as token:
        hello = {"job": _job(world, own), "token": token}
        arrivals, connections = _collect(server, hello, world, own, limit_seconds)
    server.close()  # Before anyone goes on: torch opens the same port next.
    lines = judge(world, own, arrivals, limit_seconds)
    for connection in connections:
        _send(connection, {"start": not lines and not own.problem})
        connection.close()
    return lines if lines or own.problem else None


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    return socket.create_server(("", port), backlog=4096)


@contextmanager
def _token(own: Arrival) -> Iterator[str]:
    """Put a file with a new name into the run's folder for the time of the meeting."""
    if own.folder is None or own.problem:
        yield ""
        return
    for left_behind in own.folder.glob(".start-*"):
        left_behind.unlink(missing_ok=True)
    path = own.folder / f".start-{secrets.token_hex(8)}"
    path.touch()
    try:
        yield path.name
    finally:
        path.unlink(missing_ok=True)


def _collect(
    server: socket.socket, hello: Mapping[str, Any], world: World, own: Arrival, limit_seconds: float
) -> tuple[dict[int, dict[str, Any]], list[socket.socket]]:
    """Greet ranks until all have come, or the time is over: the full limit, or a few seconds once a problem is known."""
    now = time.monotonic()
    deadline = now + (PATIENCE_SECONDS if own.problem else limit_seconds)
    arrivals: dict[int, dict[str, Any]] = {}
    connections: list[socket.socket] = []
    while len(arrivals) < world.size - 1 and (left := deadline - time.monotonic()) > 0:
        server.settimeout(min(left, REMIND_SECONDS))
        try:
            connection, _ = server.accept()
        except TimeoutError:
            absent = [rank for rank in range(1, world.size) if rank not in arrivals]
            log.warning("%d of %d ranks are here; waiting for rank %s", len(arrivals) + 1, world.size, _first(absent))
            continue
        arrival = _greet(connection, hello)
        if arrival is None or arrival["rank"] not in range(1, world.size):
            connection.close()
            continue
        arrivals[arrival["rank"]] = arrival
        connections.append(connection)
        if arrival["problem"]:
            deadline = min(deadline, time.monotonic() + PATIENCE_SECONDS)
    return arrivals, connections


def _greet(connection: socket.socket, hello: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the rank at the other end brings; None for a stray connection or another job's rank."""
    try:
        connection.settimeout(ANSWER_SECONDS)
        _send(connection, hello)
        arrival = _read(connection)
    except (OSError, ValueError):
        return None
    return arrival if arrival.keys() == {"rank", "host", "problem", "facts", "sees_token"} else None


def judge(world: World, own: Arrival, arrivals: Mapping[int, Mapping[str, Any]], limit_seconds: float) -> list[str]:
    """What is against a start beside rank 0's own problem, one line each."""
    problems: dict[str, str] = {}
    for rank, arrival in sorted(arrivals.items()):
        if arrival["problem"]:
            problems.setdefault(arrival["problem"], f"rank {rank} on {arrival['host']}: ")
    lines = [f"{who}{problem}" for problem, who in problems.items() if problem != own.problem]
    if own.problem or lines:
        return lines
    absent = [rank for rank in range(1, world.size) if rank not in arrivals]
    if absent:
        return [_describe_absent(world, absent, limit_seconds)]
    here = socket.gethostname()
    blind = dict.fromkeys(arrival["host"] for arrival in arrivals.values() if not arrival["sees_token"])
    if blind:
        return [
            f"host {', '.join(blind)} does not see {own.folder}, where {here} has just written: "
            "run.directory must be on a path all hosts share."
        ]
    for name, value in own.facts.items():
        for arrival in arrivals.values():
            if arrival["facts"].get(name) != value:
                lines.append(
                    f"host {arrival['host']}: {name}: {arrival['facts'].get(name)}, but on {here}: {value}. "
                    "All hosts must use the same checkout, .venv and data."
                )
                break
    return lines or _split_pipelines(own.stages, {0: here, **{rank: arrival["host"] for rank, arrival in arrivals.items()}})


def _describe_absent(world: World, absent: Sequence[int], limit_seconds: float) -> str:
    nodes = sorted({rank // world.local_size + 1 for rank in absent})
    return (
        f"{len(absent)} of {world.size} ranks ({_first(absent)}; host number {_first(nodes)} of the job) did not come within "
        f"{limit_seconds:.0f} s. Look above for what ssh or the launcher said of them, and whether they can reach {_address(world)}."
    )


def _first(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:6])) + (" ..." if len(numbers) > 6 else "")


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


def _report(world: World, own: Arrival, limit_seconds: float) -> list[str] | None:
    try:
        connection = _reach(world, PATIENCE_SECONDS if own.problem else limit_seconds)
    except OSError as error:
        return _say(world, own.problem or f"no answer from rank 0 at {_address(world)} within {limit_seconds:.0f} s ({error}).")
    with connection:
        try:
            hello = _read(connection)
            if hello["job"] != (job := _job(world, own)) and None not in (hello["job"]["folder"], job["folder"]):
                return _say(world, f"{_address(world)} is another job's (its folder: {hello['job']['folder']}). Use another port.")
            brought = {"rank": world.rank, "host": socket.gethostname(), "problem": own.problem, "facts": dict(own.facts)}
            _send(connection, {**brought, "sees_token": _sees(own.folder, hello["token"])})
            connection.settimeout(limit_seconds + ANSWER_SECONDS)
            if _read(connection)["start"]:
                return None
        except (OSError, ValueError, KeyError):
            return _say(world, own.problem or f"what answers at {_address(world)} is not rank 0, or it left before the start.")
    time.sleep(1.0)  # The launcher ends rank 0 as soon as one rank leaves; it has lines to print.
    return []


def _say(world: World, problem: str) -> list[str]:
    """Where rank 0 cannot be told, one rank of each host speaks."""
    return [f"host {socket.gethostname()}: {problem}"] if world.local_rank == 0 else []


def _reach(world: World, patience_seconds: float) -> socket.socket:
    """Connect to rank 0, which may not be listening yet."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            connection = socket.create_connection((world.master_addr, world.master_port), timeout=ANSWER_SECONDS)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return connection


def _sees(folder: Path | None, token: str) -> bool:
    deadline = time.monotonic() + SIGHT_SECONDS
    while folder is not None and token and not (folder / token).exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.25)
    return True


def _job(world: World, own: Arrival) -> dict[str, Any]:
    return {"size": world.size, "folder": own.folder and str(own.folder)}


def _address(world: World) -> str:
    return f"{world.master_addr}:{world.master_port}"


def _send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _read(connection: socket.socket) -> dict[str, Any]:
    """One line of JSON.

    Raises:
        ValueError: If the other end closed or sent something else.
        OSError: If it sent nothing in time.
    """
    with connection.makefile("rb") as file:
        message = json.loads(file.readline(1 << 20))
    if not isinstance(message, dict):
        raise ValueError("not a message of the meeting")
    return message
