"""Prepare a corpus that outgrows one machine: the steps of `prepare.py`, run by datatrove's executors.

    python -m data.at_scale CONFIG --executor ray --workers 64 [dotted.key=value ...]
    python -m data.at_scale CONFIG --executor slurm --workers 200 --partition NAME --time 24:00:00 [dotted.key=value ...]

The tasks, their files and the store are the same as those of `python -m data.prepare`, so either can go on where the
other was stopped. All hosts must see the current folder, the checkout and the data under the same paths. This process
waits for the tasks and does what is done once (comparing sketches, training a tokenizer, publishing).

`Cluster.run` stands in for `tasks.run`.
"""

import argparse
import logging
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data.documents import DataError
from data.packages import OF_DATA, require
from data.steps.tasks import Result, Task, execute
from data.steps.tasks import run as run_here
from ds_configs.atomic_files import read_object, with_ending, write_json
from ds_configs.commands import command

logger = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parent.parent
_WAVES_WHEN_STOPPING_EARLY = 2  # Tasks a worker gets at a time while it is open how many are needed.
_RANKS_PER_WORKER = 2  # A rank costs a process start, of seconds with Ray; a second one evens out unequal tasks.
_POLL_SECONDS = 5.0
_SAY_SECONDS = 60.0


@dataclass(frozen=True, repr=False)
class RunTasks:
    """A step of a datatrove pipeline: rank r of n runs tasks r, r + n, r + 2 n ..., those without a result."""

    tasks: Sequence[Task]
    folder: str
    """The current folder of the preparation, which relative paths mean."""

    def __repr__(self) -> str:  # datatrove logs it for every rank.
        return f"RunTasks({len(self.tasks)} tasks, {self.folder})"

    def __call__(self, _documents: object, rank: int, world_size: int) -> None:
        """Run the tasks. What a user can mend is written down, since an executor may be unable to carry it back."""
        os.chdir(self.folder)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # The ranks are the parallelism.
        for task in self.tasks[rank::world_size]:
            if task.result_path.is_file():
                continue
            try:
                execute(task)
            except DataError as error:
                write_json(_error_path(task), {"error": str(error)})
                raise


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where tasks run."""

    executor: Literal["local", "slurm", "ray"]
    workers: int
    logs: Path
    """Folder for datatrove's logs and, with Slurm, its launch scripts."""
    slurm: Mapping[str, Any] = field(default_factory=dict)
    """What SlurmPipelineExecutor takes beside: partition, time, qos, mem_per_cpu_gb, sbatch_args ..."""
    memory_gb: float = 2.0
    """Reserved for a worker."""

    def run(self, tasks: Sequence[Task], num_workers: int, enough: Callable[[list[Result]], bool] | None = None) -> list[Result]:
        """Do what `tasks.run` does, and raise what it raises, with this cluster's workers; a single task runs in this process."""
        if len(tasks) > 1:
            wave = len(tasks) if enough is None else _WAVES_WHEN_STOPPING_EARLY * self.workers
            for end in range(wave, len(tasks) + wave, wave):
                self._launch([task for task in tasks[:end] if not task.result_path.is_file()])
                if enough is not None and enough(run_here(tasks[:end], 1)):
                    break
        return run_here(tasks, 1, enough)  # Everything is done; this reads the results.

    def _launch(self, tasks: Sequence[Task]) -> None:
        """Run tasks without a result.

        Raises:
            DataError: What a task said, or how many have no result now and where to look.
        """
        if not tasks:
            return
        for task in tasks:
            _error_path(task).unlink(missing_ok=True)
        step = tasks[0].output.parent
        logs = self.logs / f"{step.name}-{time.strftime('%Y%m%d-%H%M%S')}-{tasks[0].output.name}"
        reason = "they ended without a result"
        try:
            self._execute(RunTasks(tasks, os.getcwd()), min(len(tasks), _RANKS_PER_WORKER * self.workers), logs)
        except DataError:
            raise
        except Exception as error:  # Of any library below; what counts is which results are there.
            logger.debug("the executor failed", exc_info=True)
            reason = f"{type(error).__name__}: {error}"
        missing = [task for task in tasks if not task.result_path.is_file()]
        for task in missing:
            if said := read_object(_error_path(task)):
                raise DataError(said["error"])
        if missing:
            raise DataError(
                f"{len(missing)} of {len(tasks)} tasks of {step} failed ({reason}); their logs are in {logs}."
                " What is done stays done: start again to go on."
            )

    def _execute(self, step: RunTasks, num_ranks: int, logs: Path) -> None:
        """Run a step's tasks and wait for them."""
        require("datatrove", "data.at_scale", f"{OF_DATA} on every host.")
        import datatrove.utils.logging

        datatrove.utils.logging.logger.remove()  # It logs every step at the level of information.
        datatrove.utils.logging.logger.add(sys.stderr, level="ERROR")
        common = {"pipeline": [step], "tasks": num_ranks, "logging_dir": str(logs.absolute()), "skip_completed": False}
        if self.executor == "local":
            from datatrove.executor import LocalPipelineExecutor

            LocalPipelineExecutor(**common, workers=min(self.workers, num_ranks)).run()
        elif self.executor == "ray":
            _run_on_ray({**common, "workers": self.workers, "mem_per_cpu_gb": self.memory_gb})
        else:
            _run_on_slurm({**common, "workers": self.workers, "mem_per_cpu_gb": self.memory_gb, **self.slurm}, step.tasks)


def _run_on_ray(arguments: dict[str, Any]) -> None:
    """Run on the cluster that RAY_ADDRESS names, else on one that is started on this machine."""
    ray = require("ray", "--executor ray", "ray==2.60.0 on every host.")
    from datatrove.executor.ray import RayPipelineExecutor

    if not ray.is_initialized():
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        here = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": arguments["workers"], "include_dashboard": False}
        ray.init(runtime_env={"env_vars": {"PYTHONPATH": path}}, log_to_driver=False, logging_level=logging.WARNING, **here)
    RayPipelineExecutor(**arguments).run()


def _run_on_slurm(arguments: dict[str, Any], tasks: Sequence[Task]) -> None:
    """Submit an array of jobs and wait until all results are there or the array is gone from the queue."""
    from datatrove.executor import SlurmPipelineExecutor

    logs = arguments["logging_dir"]
    if shlex.quote(logs) != logs:
        raise DataError(f"{logs}: datatrove writes this path unquoted into its Slurm scripts. Use folders without spaces or quotes.")
    if shutil.which("squeue") is None:
        raise DataError("squeue is not on PATH, so the jobs could not be watched. Start where all of Slurm's commands are.")
    environment = f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH PYTHONPATH={shlex.quote(str(_ROOT))}:$PYTHONPATH"
    executor = SlurmPipelineExecutor(**{"env_command": environment, "job_name": "prepare", **arguments})
    executor.run()
    _wait(str(executor.job_id), tasks)


def _wait(job: str, tasks: Sequence[Task]) -> None:
    """Wait until all results are there, or Slurm does not have the job any more."""
    said = -_SAY_SECONDS
    while any(not task.result_path.is_file() for task in tasks):
        time.sleep(_POLL_SECONDS)
        queue = subprocess.run(["squeue", "--noheader", "--jobs", job], capture_output=True, text=True, check=False)
        reason = queue.stderr.strip() or f"exit code {queue.returncode}"
        gone = "invalid job id" in reason.lower() if queue.returncode else not queue.stdout.strip()
        if gone:
            return
        # A controller that is busy says nothing about the job.
        if queue.returncode and time.monotonic() - said > _SAY_SECONDS:
            said = time.monotonic()
            logger.warning("squeue failed (%s): still waiting for job %s and its results", reason, job)


def _error_path(task: Task) -> Path:
    return with_ending(task.output, ".error.json")


@command(level=logging.INFO)
def main(arguments: Sequence[str]) -> int:
    """Prepare the data of a configuration file on a cluster."""
    from data.config import DataConfig
    from data.prepare import make_from, prepare

    parser = argparse.ArgumentParser(prog="python -m data.at_scale", description="Prepare a corpus on a cluster.")
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value")
    parser.add_argument("--executor", choices=["local", "slurm", "ray"], required=True)
    parser.add_argument("--workers", type=int, required=True, help="tasks at the same time")
    parser.add_argument("--memory-gb", type=float, default=2.0, help="reserved for a worker by ray and slurm (2)")
    parser.add_argument("--partition", help="of Slurm")
    parser.add_argument("--time", help="limit of a Slurm job (default: 24:00:00)")
    options = parser.parse_intermixed_args(arguments)
    if options.executor == "slurm" and not options.partition:
        parser.error("--executor slurm needs --partition")
    if options.executor != "slurm" and (options.partition or options.time):
        parser.error("--partition and --time are of --executor slurm")
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: it must be 1 or more")
    if not 0 < options.memory_gb < math.inf:
        parser.error(f"--memory-gb {options.memory_gb:g}: it must be more than 0")
    slurm = {"partition": options.partition, "time": options.time or "24:00:00"} if options.executor == "slurm" else {}

    def make(config: DataConfig) -> Path:
        logs = Path(config.directory) / "logs"
        cluster = Cluster(executor=options.executor, workers=options.workers, logs=logs, slurm=slurm, memory_gb=options.memory_gb)
        return prepare(config, run=cluster.run)

    try:
        return make_from(options.config, options.overrides, make)
    except KeyboardInterrupt:
        print("SIGINT: stopped. What is done stays done: start again to go on.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    # Under its own name, not as __main__: the workers must find the classes that are sent to them.
    from data.at_scale import main as main_by_name

    sys.exit(main_by_name(sys.argv[1:]))
