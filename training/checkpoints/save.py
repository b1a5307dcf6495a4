"""Save, publish, prune.

DeepSpeed's files are written by us, from a snapshot (`snapshot.py`), in a thread, while training goes on. A checkpoint is a folder that
becomes real in this order: every rank writes, syncs and hashes its files; rank 0 hears from all that nobody failed, writes the manifest,
and only then replaces `latest` in one step. A folder without a manifest is a save that was interrupted.

Collectives belong to the main thread, so the threads tell rank 0 through the job's store. One save is under way at a time.
"""

import logging
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_configs.atomic_files import write_json, write_text
from training.checkpoints.find_and_verify import LATEST, MANIFEST, published, some_of, step_of, tag_of
from training.checkpoints.snapshot import HostMemory, Snapshot, describe, take
from training.launch.process_group import Ranks, gather, hear_all, tell_first

log = logging.getLogger(__name__)

# For a rank that leaves because of an error; peers that were killed would be waited for in vain.
SETTLE_SECONDS = 15.0
# In front of a tag: what a resume on another topology once made of that checkpoint.
CONVERTED = "universal_"


@dataclass
class Saving:
    """A save under way."""

    step: int
    target: Path
    manifest: dict[str, Any]
    started: float
    """On the monotonic clock."""
    snapshot_seconds: float = 0.0
    """That training had to wait in any case."""
    seconds: float = 0.0
    """From the start to the published checkpoint, on rank 0; 0 unless it was published."""


class Saver:
    """Saves the checkpoints of one start of a run. All methods are called on all ranks alike."""

    def __init__(self, ranks: Ranks, run: Path, *, keep: int, copy: bool = True, say: Callable[[Saving], None] | None = None) -> None:
        """Nothing is written yet.

        Args:
            ranks: This rank's place.
            run: The run's folder, on a path that all hosts share.
            keep: How many checkpoints stay.
            copy: Take copies, so that training may go on; otherwise `finish` must follow `start` at once.
            say: Called on rank 0, from the thread, when a checkpoint is published.
        """
        self.saved_step = -1
        self._ranks, self._run, self._keep, self._say = ranks, run, keep, say
        self._memory = HostMemory() if copy else None
        self._saving: Saving | None = None
        self._thread = threading.Thread()
        self._count = 0

    @property
    def is_busy(self) -> bool:
        """Whether a save was started and not finished."""
        return self._saving is not None

    @property
    def is_writing(self) -> bool:
        """Whether this rank's thread is still at work; differs from rank to rank."""
        return self._thread.is_alive()

    def start(self, engine: Any, facts: Mapping[str, Any]) -> None:
        """Take the engine's state at its current step, and let a thread write and publish it. Call `finish` first if a save is under way.

        Args:
            engine: The pipeline engine.
            facts: What the manifest should also say (metrics); the same on every rank.
        """
        assert self._saving is None, "the save before it was not finished"
        started = time.monotonic()
        target = self._run / "checkpoints" / tag_of(engine.global_steps)
        problem = gather(_problem_of(lambda: _make_folder(target)) if self._ranks.is_first else None)[0]
        if problem:
            if self._ranks.is_first:
                _say_failure(target, f"rank 0: {problem}")
            return
        manifest = {
            "tag": target.name,
            "step": engine.global_steps,
            "consumed_samples": engine.global_samples,
            "topology": self._ranks.topology,
            "partition": list(engine.module.parts),
            **facts,
        }
        snapshot = take(engine, target, self._ranks.world.rank, self._memory)
        self._saving = Saving(engine.global_steps, target, manifest, started, time.monotonic() - started)
        self._count += 1
        self._thread = threading.Thread(target=self._write, args=(self._saving, snapshot, f"save {self._count}"), name="save", daemon=True)
        self._thread.start()

    def finish(self) -> float:
        """Wait until the save under way, if there is one, is published or has failed; then `saved_step` tells.

        Returns:
            How many seconds it took from its start to its end on rank 0; 0.0 if it failed or there was none.
        """
        if self._saving is None:
            return 0.0
        self._thread.join()
        saving, self._saving = self._saving, None
        seconds: float = gather(saving.seconds)[0]
        if seconds:
            self.saved_step = saving.step
        return seconds

    def settle(self) -> None:
        """On one rank, before it leaves because of an error: give its thread time to end, and rank 0's to hear of all others."""
        if self.is_writing:
            self._thread.join(SETTLE_SECONDS)

    def _write(self, saving: Saving, snapshot: Snapshot, topic: str) -> None:
        """In the thread: this rank's files; on rank 0 what makes a checkpoint of all."""
        files: dict[str, Any] = {}
        problem = _problem_of(lambda: files.update(snapshot.write()))
        snapshot.files.clear()
        try:
            tell_first(topic, {"files": files, "problem": problem})
            answers = hear_all(topic, self._ranks.world.size) if self._ranks.is_first else []
        except RuntimeError:
            return  # The store went with rank 0: the run is over, and the main thread says why.
        if self._ranks.is_first:
            self._publish(saving, answers)

    def _publish(self, saving: Saving, answers: list[dict[str, Any]]) -> None:
        failed = [f"rank {rank}: {answer['problem']}" for rank, answer in enumerate(answers) if answer["problem"]]
        if not failed:
            saving.manifest["files"] = dict(sorted(item for answer in answers for item in answer["files"].items()))
            problem = _problem_of(lambda: _publish(saving.target, saving.manifest))
            failed = [f"rank 0: {problem}"] if problem else []
        if failed:
            _say_failure(saving.target, some_of(failed, "ranks"))
            return
        saving.seconds = time.monotonic() - saving.started
        if problem := _problem_of(lambda: prune(self._run, self._keep, saving.step)):
            log.warning("older checkpoints were not removed: %s. The next save tries again; until then they take space.", problem)
        if self._say:
            self._say(saving)


def _problem_of(part: Callable[[], None]) -> str | None:
    """Do it, and give in one line what went wrong: whatever it is, the other ranks have to hear of it."""
    try:
        part()
    except Exception as error:
        if not isinstance(error, (OSError, RuntimeError)):
            traceback.print_exc()  # A mistake of ours: the whole trace is what helps.
        return describe(error)
    return None


def _say_failure(target: Path, why: str) -> None:
    log.error("checkpoint %s was not saved: %s. The checkpoints before it are untouched.", target.name, why)
    _remove(target)


def _make_folder(target: Path) -> None:
    """An empty folder: what an interrupted save left there is removed."""
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)


def _publish(target: Path, manifest: Mapping[str, Any]) -> None:
    write_json(target / MANIFEST, manifest)
    write_text(target.parent / LATEST, target.name)


def prune(run: Path, keep: int, step: int) -> None:
    """Remove all but the newest `keep` complete checkpoints up to `step`, and what interrupted saves and changes of topology left.

    On rank 0, after publishing that step: those of later ones were damaged, or the run would not have gone on from before them.
    Only names that are ours are touched: a copy that somebody made stays.
    """
    kept = [path for path in published(run) if (step_of(path.name) or 0) <= step][:keep]
    for path in (run / "checkpoints").iterdir():
        is_ours = step_of(path.name.removeprefix(CONVERTED)) is not None or path.name.startswith(f".{LATEST}.")
        if is_ours and path not in kept:
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a file or folder; what stays behind is said, and costs space only."""
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s could not be removed: %s", path, error)
