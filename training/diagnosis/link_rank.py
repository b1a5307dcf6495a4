"""One rank of `python -m training.doctor --links`: it meets the others as in a run, talks to its neighbours, and says what it does.

A launcher starts it. Every report is one line of JSON on standard output, behind `MARK`: launchers pass output on, so reports reach the
doctor also where the network between ranks does not work. `link_reports.py` reads them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.launch.parent import watch_launcher
from training.launch.rendezvous import agree_to_start
from training.launch.reports import Report
from training.launch.world import World, find_world

if TYPE_CHECKING:
    import torch

    from training.launch.process_group import Ranks

MARK = "@link "
BEAT_SECONDS = 2.0
# A rank that nobody can end (its host was cut off) ends itself so long after the doctor gave up.
MARGIN_SECONDS = 30.0
STEPS = ("start", "meet", "group", "ring", "all_reduce", "speed")
SMALL = 1024
ROUNDS = 3


class Reporter:
    """Says where this rank is, and every two seconds that it is alive."""

    def __init__(self, rank: int, limit_seconds: float) -> None:
        self._rank = rank
        self._limit_seconds = limit_seconds
        self._said_at = time.monotonic()
        threading.Thread(target=self._beat, daemon=True).start()

    def say(self, **what: Any) -> None:
        """Report."""
        self._said_at = time.monotonic()
        self._write(what)

    def _write(self, what: dict[str, Any]) -> None:
        line = MARK + json.dumps({"rank": self._rank, **what}, ensure_ascii=True)
        try:
            os.write(1, f"{line}\n".encode())  # One write: lines of several ranks share a pipe.
        except OSError:
            os._exit(1)  # Nobody listens any more.

    def _beat(self) -> None:
        while time.monotonic() - self._said_at < self._limit_seconds + MARGIN_SECONDS:
            self._write({"beat": True})
            time.sleep(BEAT_SECONDS)
        os._exit(1)


def main(arguments: Sequence[str]) -> int:
    """Go through all steps. Returns 0, or 1 after a report of what failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("token", help="by which the doctor finds its processes")
    parser.add_argument("--stages", type=int, required=True)
    parser.add_argument("--precision", choices=("auto", "true", "false"), required=True)
    parser.add_argument("--mebibytes", type=int, required=True)
    parser.add_argument("--limit-seconds", type=float, required=True)
    options, _ = parser.parse_known_args(arguments)  # The launcher adds --local_rank.
    watch_launcher(os.environ)
    logging.basicConfig(level=logging.ERROR)
    world = find_world(os.environ)
    reporter = Reporter(world.rank, options.limit_seconds)
    try:
        return 0 if _run(world, options, reporter) else 1
    except Exception as error:  # Whatever it is, the doctor's table is where it belongs.
        reporter.say(error=f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        return 1


def _run(world: World, options: argparse.Namespace, reporter: Reporter) -> bool:
    """False if the ranks did not meet; why, is said."""
    reporter.say(step="start", host=socket.gethostname(), size=world.size)
    reporter.say(step="meet")
    if not agree_to_start(world, Report(stages=options.stages), options.limit_seconds, lambda line: reporter.say(error=line)):
        return False
    reporter.say(step="group")
    from training.launch.process_group import prepare_environment, quiet

    prepare_environment(world)
    with quiet():
        from training.launch.process_group import backend, gather, start

        ranks = start(world, options.stages)
    hosts = gather(socket.gethostname())
    dtype, precision = _precision(options.precision, ranks)
    reporter.say(done="group", backend=backend(), precision=precision)
    check_ring(ranks, dtype, reporter)
    check_all_reduce(ranks, reporter)
    reporter.say(step="speed")
    measure(ranks, hosts, _empty(options.mebibytes << 20, dtype), reporter)
    reporter.say(done="speed")
    import torch

    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return True


def _precision(setting: str, ranks: Ranks) -> tuple[torch.dtype, str]:
    """What the run would compute in, as rank 0 decides it."""
    from deepspeed.accelerator import get_accelerator

    from model.hardware.precision import choose_precision
    from training.launch.process_group import gather

    wanted = {"auto": "auto", "true": True, "false": False}[setting]
    kind = get_accelerator().device_name()
    decided = gather(choose_precision(wanted, kind) if ranks.is_first else None)[0]  # type: ignore[arg-type]  # a str of these three
    return decided.dtype, decided.name


def _empty(size_bytes: int, dtype: torch.dtype) -> torch.Tensor:
    import torch
    from deepspeed.accelerator import get_accelerator

    return torch.ones(size_bytes // dtype.itemsize, dtype=dtype, device=get_accelerator().current_device_name())


def check_ring(ranks: Ranks, dtype: torch.dtype, reporter: Reporter) -> None:
    """Every rank sends to the next, the last to the first, as stages do: (SMALL,) of the run's precision.

    Raises:
        ArithmeticError: If other values arrive than were sent.
    """
    rank, size = ranks.world.rank, ranks.world.size
    before, behind = (rank - 1) % size, (rank + 1) % size
    own, received = _empty(SMALL * dtype.itemsize, dtype), _empty(SMALL * dtype.itemsize, dtype)
    own.fill_(rank % 100)  # Exact in bf16.
    reporter.say(step="ring")
    # Even ranks speak first, so no two wait for each other to listen.
    for sends in (True, False) if rank % 2 == 0 else (False, True):
        if size > 1:
            _send(own, behind, reporter) if sends else _receive(received, before, reporter)
    if size > 1 and not bool((received == before % 100).all()):
        raise ArithmeticError(f"other values arrived from rank {before} than it sent")
    reporter.say(done="ring")


def check_all_reduce(ranks: Ranks, reporter: Reporter) -> None:
    """One sum over all ranks, in fp32 as gradients are summed: (SMALL,).

    Raises:
        ArithmeticError: If it is wrong.
    """
    import torch

    size = ranks.world.size
    values = _empty(SMALL * 4, torch.float32).fill_(ranks.world.rank)
    reporter.say(step="all_reduce", waits=[rank for rank in range(size) if rank != ranks.world.rank])
    torch.distributed.all_reduce(values)
    if not bool((values == size * (size - 1) / 2).all()):
        raise ArithmeticError(f"the sum over ranks 0-{size - 1} is {values[0].item()}, not {size * (size - 1) / 2}")
    reporter.say(done="all_reduce")


@dataclass(frozen=True)
class Row:
    """Ranks in a row, each `distance` from the next; this one is at `place` of `length`."""

    name: str
    place: int
    length: int
    distance: int


def measure(ranks: Ranks, hosts: Sequence[str], payload: torch.Tensor, reporter: Reporter) -> None:
    """Time the links that a run uses: to the next stage, to that stage of the next replica, and the sum over all replicas."""
    import torch

    rank, stages = ranks.world.rank, ranks.stages
    rows = (Row("next stage", ranks.stage, stages, 1), Row("next replica", ranks.replica, ranks.replicas, stages))
    for row in rows:
        for first in (0, 1):  # Pairs 0-1, 2-3, ..., then 1-2, 3-4, ...: nobody is in two at a time.
            _pair(rank, row, first, (payload, hosts, reporter))
    groups = [torch.distributed.new_group(list(range(stage, ranks.world.size, stages))) for stage in range(stages)]
    if ranks.replicas == 1:
        return
    values = _empty(payload.nbytes, torch.float32)
    peers = [peer for peer in range(ranks.stage, ranks.world.size, stages) if peer != rank]
    reporter.say(step="speed", waits=peers)
    torch.distributed.all_reduce(values[:SMALL], group=groups[ranks.stage])
    start = _now()
    for _ in range(ROUNDS):
        torch.distributed.all_reduce(values, group=groups[ranks.stage])
    # As a ring would send it: each rank 2 (n - 1) / n of the buffer.
    moved = ROUNDS * values.nbytes * 2 * (ranks.replicas - 1) / ranks.replicas
    reporter.say(kind="sum over replicas", peer=peers[-1], speed=moved / (_now() - start))


def _pair(rank: int, row: Row, first: int, means: tuple[torch.Tensor, Sequence[str], Reporter]) -> None:
    """This rank's part, if any, in the pairs of places (first, first + 1), (first + 2, first + 3) ... of its row."""
    payload, hosts, reporter = means
    is_left = (row.place - first) % 2 == 0
    if not 0 <= row.place + (1 if is_left else -1) < row.length:
        return
    partner = rank + row.distance if is_left else rank - row.distance
    answer = payload[:1].clone()
    if not is_left:
        for part in (payload[:SMALL], *[payload] * ROUNDS):
            _receive(part, partner, reporter)
        _send(answer, partner, reporter)
        return
    _send(payload[:SMALL], partner, reporter)  # Connects.
    start = _now()
    for _ in range(ROUNDS):
        _send(payload, partner, reporter)
    _receive(answer, partner, reporter)
    speed = ROUNDS * payload.nbytes / (_now() - start)
    where = "inside a host" if hosts[rank] == hosts[partner] else "between hosts"
    reporter.say(kind=f"{row.name}, {where}", peer=partner, speed=speed)


def _send(values: torch.Tensor, rank: int, reporter: Reporter) -> None:
    import torch

    reporter.say(waits=[rank])
    torch.distributed.send(values, rank)


def _receive(values: torch.Tensor, rank: int, reporter: Reporter) -> None:
    import torch

    reporter.say(waits=[rank])
    torch.distributed.recv(values, rank)


def _now() -> float:
    from deepspeed.accelerator import get_accelerator

    get_accelerator().synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # As a run's rank does: threads that wait in C++ would abort it.
