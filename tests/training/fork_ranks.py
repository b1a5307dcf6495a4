"""Start the ranks of one run as DeepSpeed's launcher does, but forked from a process that has torch and DeepSpeed imported.

    python -m tests.training.fork_ranks RANKS CONFIG [dotted.key=value ...]

So a start costs one import and not one for the launcher and one for each rank. FAULT may name one of faults.py's. Tests of
launchers themselves start the real ones.
"""

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from tests.training.faults import FAULTS
from training.launch.local import free_port

# For the children: also what torch and we import late.
IMPORTS = ("deepspeed", "torch.distributed.fsdp", "torch.utils.tensorboard")
PATIENCE_SECONDS = 30  # As the launcher has.


def main(arguments: Sequence[str]) -> int:
    """Returns the first exit code of a rank that is not 0; the other ranks are ended then, as the launcher ends them."""
    from training.run.assembly import LATE_IMPORTS

    for name in (*IMPORTS, *LATE_IMPORTS):
        importlib.import_module(name)
    size, words = int(arguments[0]), arguments[1:]
    os.environ |= {"WORLD_SIZE": str(size), "LOCAL_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [fork(rank, words) for rank in range(size)]
    signal.signal(signal.SIGTERM, lambda number, frame: end(ranks))
    signal.signal(signal.SIGALRM, lambda number, frame: send(ranks, signal.SIGKILL))
    failed = 0
    while ranks:
        process, status = os.wait()
        ranks.remove(process)
        code = os.waitstatus_to_exitcode(status)
        if code and not failed:
            failed = code
            end(ranks)
    return failed if failed >= 0 else 128 - failed


def fork(rank: int, words: Sequence[str]) -> int:
    """Returns the child's process id."""
    if child := os.fork():
        return child
    code = 1
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        if fault := os.environ.get("FAULT"):
            FAULTS[fault]()
        from training.pretrain import main

        code = main(words)
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end(ranks: Sequence[int]) -> None:
    """Ask them, and kill those that have not left after a while."""
    send(ranks, signal.SIGTERM)
    signal.alarm(PATIENCE_SECONDS)


def send(ranks: Sequence[int], number: signal.Signals) -> None:
    for process in ranks:
        os.kill(process, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
