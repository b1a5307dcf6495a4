"""Ranks by the thousand on one machine, as processes, through the rendezvous: forked, and with nothing imported but what it needs.

    many_ranks.py RANKS FOLDER [RANK_WITH_A_PROBLEM]

Prints one JSON object: how many ranks were told to start, the lines that were said, and the seconds from the first rank's
start until all have left.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

from training.launch.local import free_port
from training.launch.preflight_reports import Report
from training.launch.rendezvous import agree_to_start
from training.launch.world import World

STAGES = 6
PROBLEM = "no such folder"
LIMIT_SECONDS = 300.0


def attend(world: World, folder: Path, problem: str | None, told: int) -> None:
    """One rank, in a process of its own: writes what it says and what it is told."""
    own = Report(problem=problem) if problem else Report(stages=STAGES, folder=folder, facts={"the token store": "1a2b"})
    start = agree_to_start(world, own, LIMIT_SECONDS, lambda line: write(told, {"rank": world.rank, "said": line}))
    write(told, {"rank": world.rank, "start": start})


def write(told: int, record: dict[str, object]) -> None:
    os.write(told, json.dumps(record).encode() + b"\n")  # Shorter than PIPE_BUF, so whole.


def main(ranks: int, folder: Path, failing: int | None) -> None:
    """Fork all ranks, in an order of chance: many find nobody listening at first."""
    order = list(range(ranks))
    random.Random(ranks).shuffle(order)
    port = free_port()
    reader, writer = os.pipe()
    started = time.monotonic()
    for rank in order:
        world = World(rank=rank, local_rank=rank % STAGES, size=ranks, local_size=STAGES, master_addr="127.0.0.1", master_port=port)
        if os.fork() == 0:
            os.close(reader)
            attend(world, folder, PROBLEM if rank == failing else None, writer)
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        records = [json.loads(line) for line in lines]
    for _ in range(ranks):
        os.wait()
    said = [(record["rank"], record["said"]) for record in records if "said" in record]
    answers = [record["start"] for record in records if "start" in record]
    print(json.dumps({"answers": len(answers), "starts": sum(answers), "said": said, "seconds": time.monotonic() - started}))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
