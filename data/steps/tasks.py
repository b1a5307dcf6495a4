"""Steps of a preparation as tasks with results, which a kill at any moment cannot harm.

A step is a list of tasks. A task writes files of its own and, last of all, its result: a task with a result is done and
never repeated. What a task writes depends on its arguments only, so neither the number of workers nor the number of starts
shows in the outcome.
"""

import contextlib
import logging
import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any, Protocol

from data.documents import DataError
from ds_configs.atomic_files import read_object, with_ending, write_json

logger = logging.getLogger(__name__)

Result = dict[str, Any]

_LOG_INTERVAL_SECONDS = 20.0


@dataclass(frozen=True)
class Task:
    """One call of `function(*arguments, output)`, where `output` is the prefix of the files it writes.

    `function` is a module's function and returns its result as JSON values.
    """

    output: Path
    function: Callable[..., Result]
    arguments: tuple[Any, ...]

    @property
    def result_path(self) -> Path:
        """Where the result lies once the task is done."""
        return with_ending(self.output, ".done.json")


class Runner(Protocol):
    """Runs the tasks of a step: `run` here, on this machine, or another engine (`at_scale.py`)."""

    def __call__(self, tasks: Sequence[Task], num_workers: int, enough: Callable[[list[Result]], bool] | None = None) -> list[Result]:
        """See `run`."""
        ...


def run(tasks: Sequence[Task], num_workers: int, enough: Callable[[list[Result]], bool] | None = None) -> list[Result]:
    """Run what is not done yet, in parallel, and return all results in the tasks' order.

    Args:
        tasks: All tasks of a step, the done ones included.
        num_workers: Processes; with one, everything runs in this process.
        enough: Told the results of the first tasks without a gap; when it says yes, the tasks behind them are left out,
            whether they are done or not, and the results end there.

    Raises:
        DataError: Of a task, or if a worker was killed.
    """
    results: dict[int, Result] = {index: read_object(task.result_path) for index, task in enumerate(tasks) if task.result_path.is_file()}
    missing = [index for index in range(len(tasks)) if index not in results]
    if results:
        logger.info("%s: %d of %d parts are done already", tasks[0].output.parent.name, len(results), len(tasks))
    prefix: list[Result] = []
    logged = time.monotonic()
    in_process = num_workers == 1 or len(missing) <= 1
    serial = ((index, execute(tasks[index])) for index in missing)
    with contextlib.closing(serial if in_process else _parallel(tasks, missing, num_workers)) as new:
        while True:
            while len(prefix) in results:
                prefix.append(results[len(prefix)])
                if enough and enough(prefix):
                    return prefix
            if len(prefix) == len(tasks):
                return prefix
            index, result = next(new)
            results[index] = result
            if time.monotonic() - logged > _LOG_INTERVAL_SECONDS:
                logged = time.monotonic()
                logger.info("%s: %d of %d parts", tasks[0].output.parent.name, len(results), len(tasks))


def _parallel(tasks: Sequence[Task], missing: Sequence[int], num_workers: int) -> Generator[tuple[int, Result], None, None]:
    # A fork of this process could hang on a lock of one of its threads (tokenizers, pyarrow). The fork server has none, and
    # what it has loaded once its children share.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data.steps.clean", "data.steps.tokenization"])
    _start_fork_server()
    with ProcessPoolExecutor(min(num_workers, len(missing)), context, _start_worker, (os.getpid(),)) as pool:
        waiting: dict[Future[Result], int] = {}
        todo = iter(missing)
        try:
            while True:
                # Little more than what keeps everyone busy, so that stopping early wastes little.
                while len(waiting) < num_workers + 1 and (index := next(todo, None)) is not None:
                    waiting[pool.submit(execute, tasks[index])] = index
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker was killed, most likely because memory ran out. Start again to go on from here, with fewer data.num_workers."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def execute(task: Task) -> Result:
    """Run a task and write its result, last of all."""
    task.output.parent.mkdir(parents=True, exist_ok=True)
    result = task.function(*task.arguments, task.output)
    write_json(task.result_path, result)
    return result


def _start_fork_server() -> None:
    """Its children have SIGINT blocked from birth: Ctrl-C reaches all, the preparation leaves, and the workers end with it.

    A worker that said so itself would write a traceback if it were still starting.
    """
    resource_tracker.ensure_running()  # The fork server needs it, and starting it unblocks SIGINT.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _start_worker(preparation: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # The workers are the parallelism.
    threading.Thread(target=_end_with, args=(preparation,), daemon=True).start()


def _end_with(preparation: int) -> None:
    """End this worker as soon as the preparation is gone: it would take the machine from the next start.

    It is the fork server's child, not the preparation's, so the system would not tell it; and it holds the pipes that would
    end the fork server.
    """
    with contextlib.suppress(ProcessLookupError):
        select.select([os.pidfd_open(preparation)], [], [])
    os._exit(1)
