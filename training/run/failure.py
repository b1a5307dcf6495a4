"""Say once, for all ranks, why a run ends.

Ranks fail together (a loss that is not finite) or one after the other (a disk of one host, then everybody who waits for it).
The first to fail tells the job's store; rank 0, which writes `log.txt`, is given a moment to be first.
"""

import logging
import time
from datetime import timedelta

import torch

from training.launch.world import World

log = logging.getLogger(__name__)

RANK_0_FIRST_SECONDS = 1.0
ANSWER = timedelta(seconds=5)


class RunError(RuntimeError):
    """What ends a run by itself, on all ranks alike. A signal meanwhile does not excuse it, as it excuses a lost connection to a peer."""


def say_failure(world: World, error: Exception) -> None:
    """Print the error in a line if no rank has failed before this one; in `log.txt` it stands in any case."""
    line = f"rank {world.rank} of {world.size}: {type(error).__name__}: {error}  (PRETRAIN_TRACEBACK=1 shows the trace.)"
    if world.rank:
        time.sleep(RANK_0_FIRST_SECONDS)
        if isinstance(error, RunError):
            return  # Rank 0 has said it, and gone with the store: asking there would print a trace of C++ on every rank.
    first, cause = _claim(world, line)
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, cause, (), None)
    for handler in logging.getLogger().handlers:
        if first or isinstance(handler, logging.FileHandler):
            handler.handle(record)


def _claim(world: World, line: str) -> tuple[bool, str]:
    """Whether this rank is to speak, and what the first one said."""
    if world.size == 1 or not torch.distributed.is_initialized():
        return True, line
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        if store.add("failures", 1) == 1:
            store.set("first_failure", line)
            return True, line
        store.wait(["first_failure"], ANSWER)
        return False, store.get("first_failure").decode()
    except RuntimeError:
        # Rank 0 holds the store: it is gone, and all others notice. One of each host says so.
        return world.local_rank == 0, line
