"""Start the ranks of one run as DeepSpeed's launcher does, but forked from a process that has torch and DeepSpeed imported.

    python -m tests.training.fork_ranks RANKS CONFIG [dotted.key=value ...]

So a start costs one import at most (none, if this process is forked itself: `tests/forks.py`), and not one for the launcher and one for
each rank. FAULT may name one of faults.py's, and no file may grow over FILE_BYTES. Tests of launchers themselves start the real ones.
"""

import os
import resource
import signal
import sys
import traceback
from collections.abc import Sequence

from tests.forks import import_all
from tests.training.faults import FAULTS
from training.launch.local import free_port

PATIENCE_SECONDS = 30  # As the launcher has.


def main(arguments: Sequence[str]) -> int:
    """Returns the first exit code of a rank that is not 0; the other ranks are ended then, as the launcher ends them."""
    import_all()
    if file_bytes := int(os.environ.get("FILE_BYTES", 0)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
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
