"""What the ranks of `link_rank.py` send each other: one ring, one sum, and what measures each kind of link."""

import socket
import time

import torch
from deepspeed.accelerator import get_accelerator
from torch import distributed

from model.hardware.precision import Setting, choose_precision
from training.diagnosis.link_rank import Reporter
from training.launch.process_group import Ranks, backend, gather

SMALL = 1024
ROUNDS = 3
SETTINGS: dict[str, Setting] = {"auto": "auto", "true": True, "false": False}


def use(ranks: Ranks, setting: str, mebibytes: int, reporter: Reporter) -> None:
    """Go through the steps behind the process group. The precision is the run's: as there, rank 0 decides."""
    hosts = gather(socket.gethostname())
    precision = gather(choose_precision(SETTINGS[setting], get_accelerator().device_name()) if ranks.is_first else None)[0]
    reporter.say(step="ring", backend=backend(), precision=precision.name)
    check_ring(ranks, precision.dtype, reporter)
    others = [rank for rank in range(ranks.world.size) if rank != ranks.world.rank]
    reporter.say(step="all_reduce", waits=others)
    check_all_reduce(ranks)
    reporter.say(step="speed")
    measure_pairs(ranks, hosts, _ones(mebibytes << 20, precision.dtype), reporter)
    measure_sum(ranks, _ones(mebibytes << 20, torch.float32), reporter)
    distributed.barrier()
    reporter.say(step="end")
    distributed.destroy_process_group()


def _ones(size_bytes: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.ones(size_bytes // dtype.itemsize, dtype=dtype, device=get_accelerator().current_device_name())


def check_ring(ranks: Ranks, dtype: torch.dtype, reporter: Reporter) -> None:
    """Every rank sends to the next, the last to the first, as stages do: (SMALL,) of the run's precision.

    Raises:
        ArithmeticError: If other values arrive than were sent.
    """
    rank, size = ranks.world.rank, ranks.world.size
    if size == 1:
        return
    before, behind = (rank - 1) % size, (rank + 1) % size
    own = _ones(SMALL * dtype.itemsize, dtype).fill_(rank % 100)  # Exact in bf16.
    received = torch.empty_like(own)
    # Even ranks speak first, so no two wait for each other to listen.
    for sends in (True, False) if rank % 2 == 0 else (False, True):
        _send(own, behind, reporter) if sends else _receive(received, before, reporter)
    if not bool((received == before % 100).all()):
        raise ArithmeticError(f"other values arrived from rank {before} than it sent")


def check_all_reduce(ranks: Ranks) -> None:
    """One sum over all ranks, in fp32: (SMALL,).

    Raises:
        ArithmeticError: If it is wrong.
    """
    size = ranks.world.size
    values = _ones(SMALL * 4, torch.float32).fill_(ranks.world.rank)
    distributed.all_reduce(values)
    if not bool((values == size * (size - 1) / 2).all()):
        raise ArithmeticError(f"the sum over ranks 0-{size - 1} is {values[0].item()}, not {size * (size - 1) / 2}")


def measure_pairs(ranks: Ranks, hosts: list[str], payload: torch.Tensor, reporter: Reporter) -> None:
    """Time the links that a run uses: to the next stage, and to that stage of the next replica."""
    rank = ranks.world.rank
    rows = (("next stage", ranks.stage, ranks.stages, 1), ("next replica", ranks.replica, ranks.replicas, ranks.stages))
    for name, place, length, distance in rows:
        for first in (0, 1):  # Pairs 0-1, 2-3, ..., then 1-2, 3-4, ...: nobody is in two at a time.
            side = 1 if (place - first) % 2 == 0 else -1
            if not 0 <= place + side < length:
                continue
            peer = rank + side * distance
            if side < 0:
                _answer(payload, peer, reporter)
                continue
            where = "inside a host" if hosts[rank] == hosts[peer] else "between hosts"
            reporter.say(kind=f"{name}, {where}", peer=peer, speed=_speed_to(peer, payload, reporter))


def _speed_to(peer: int, payload: torch.Tensor, reporter: Reporter) -> float:
    """Bytes per second, until the last has arrived."""
    _send(payload[:SMALL], peer, reporter)  # Connects.
    start = _now()
    for _ in range(ROUNDS):
        _send(payload, peer, reporter)
    _receive(payload[:1].clone(), peer, reporter)
    return ROUNDS * payload.nbytes / (_now() - start)


def _answer(payload: torch.Tensor, peer: int, reporter: Reporter) -> None:
    """The other side of `_speed_to`."""
    for part in (payload[:SMALL], *[payload] * ROUNDS):
        _receive(part, peer, reporter)
    _send(payload[:1].clone(), peer, reporter)


def measure_sum(ranks: Ranks, values: torch.Tensor, reporter: Reporter) -> None:
    """Time the sum over all replicas of a stage."""
    size, stages, replicas = ranks.world.size, ranks.stages, ranks.replicas
    groups = [distributed.new_group(list(range(stage, size, stages))) for stage in range(stages)]
    if replicas == 1:
        return
    peers = [peer for peer in range(ranks.stage, size, stages) if peer != ranks.world.rank]
    reporter.say(waits=peers)
    distributed.all_reduce(values[:SMALL], group=groups[ranks.stage])
    start = _now()
    for _ in range(ROUNDS):
        distributed.all_reduce(values, group=groups[ranks.stage])
    # As a ring would send it: each rank 2 (n - 1) / n of the buffer.
    moved = ROUNDS * values.nbytes * 2 * (replicas - 1) / replicas
    reporter.say(kind="sum over replicas", peer=peers[-1], speed=moved / (_now() - start))


def _send(values: torch.Tensor, rank: int, reporter: Reporter) -> None:
    reporter.say(waits=[rank])
    distributed.send(values, rank)


def _receive(values: torch.Tensor, rank: int, reporter: Reporter) -> None:
    reporter.say(waits=[rank])
    distributed.recv(values, rank)


def _now() -> float:
    get_accelerator().synchronize()
    return time.perf_counter()
