"""Where the values of steps are written: `metrics.jsonl`, TensorBoard's events, CSV files, wandb.

A run can do without any of them. While one cannot be written, that is said once, training goes on, and every further write tries
again with what is missing. What an earlier start wrote of steps that come again is dropped.
"""

import importlib.util
import io
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ds_configs import ConfigError
from ds_configs.atomic_files import replacing, strict_json
from training.config import RunConfig

log = logging.getLogger(__name__)

Records = Sequence[Mapping[str, float]]
"""Of one or more steps: the step, and values by tag."""


class Output:
    """Something whose failure costs a picture, not the run."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._failing = False

    def attempt(self, write: Callable[[], object]) -> bool:
        """True if `write` succeeded."""
        try:
            write()
        except Exception as error:  # wandb has errors of its own; a report of whatever kind must not end a run of days.
            if not self._failing:
                log.warning(
                    "%s cannot be written (%s: %s). Training goes on; later writes try again.", self._name, type(error).__name__, error
                )
            self._failing = True
            return False
        if self._failing:
            log.info("%s is written again.", self._name)
        self._failing = False
        return True


class AppendedFile:
    """A file that grows by whole pieces; a piece that does not fit waits for the next one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._output = Output(str(path))
        self._waiting = b""

    def append(self, piece: bytes) -> None:
        """Write what waits and this piece, all or nothing."""
        self._waiting += piece
        if self._output.attempt(self._write):
            self._waiting = b""

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            end = file.tell()
            rest = memoryview(self._waiting)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                file.truncate(end)
                raise


class EventFile:
    """What TensorBoard reads. torch's SummaryWriter writes from a thread that dies at the first error and takes the values with it."""

    def __init__(self, folder: Path, start_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._record_writer = Event, RecordWriter
        # Readers take the files in the order of their names, and the clock may have been set back, or be another host's.
        others = folder.glob(f"events.out.tfevents.{'[0-9]' * 10}.*")
        begun = max(int(time.time()), *(1 + int(path.name.split(".")[3]) for path in others), 0)
        self._file = AppendedFile(folder / f"events.out.tfevents.{begun:010d}.{socket.gethostname()}.{os.getpid()}.0")
        # The second event makes readers drop what an earlier start wrote of the steps that come again, from step 1 on too.
        started = self._encode(step=start_step + 1, session_log=SessionLog(status=SessionLog.START))
        self._file.append(self._encode(file_version="brain.Event:2") + started)

    def write(self, records: Records) -> None:
        """Every value of every record as a scalar at the record's step."""
        from torch.utils.tensorboard.summary import scalar

        events = [
            self._encode(step=int(record["step"]), summary=scalar(tag, value))
            for record in records
            for tag, value in record.items()
            if tag != "step"
        ]
        self._file.append(b"".join(events))

    def text(self, tag: str, text: str, step: int) -> None:
        """A passage."""
        from torch.utils.tensorboard.summary import text as summary_of

        self._file.append(self._encode(step=step, summary=summary_of(tag, text)))

    def _encode(self, **content: Any) -> bytes:
        buffer = io.BytesIO()
        self._record_writer(buffer).write(self._event(wall_time=time.time(), **content).SerializeToString())
        return buffer.getvalue()


class MetricsFile:
    """`metrics.jsonl`: a record a line."""

    def __init__(self, path: Path, start_step: int) -> None:
        self._file = AppendedFile(path)
        _drop_after(start_step, path, lambda line: json.loads(line)["step"])

    def write(self, records: Records) -> None:
        """Append a line for each."""
        self._file.append("".join(strict_json(record) + "\n" for record in records).encode())


class CsvFiles:
    """One file a tag, as DeepSpeed's CSV monitor writes them: `train/loss` in `train_loss.csv`, a row a step."""

    def __init__(self, folder: Path, start_step: int) -> None:
        self._folder = folder
        self._files: dict[str, AppendedFile] = {}
        for path in filter(_is_of_a_tag, folder.glob("*.csv")):
            _drop_after(start_step, path, lambda line: 0 if line.startswith(b"step,") else int(line.partition(b",")[0]))

    def write(self, records: Records) -> None:
        """Append to the file of every tag."""
        rows: dict[str, str] = {}
        for record in records:
            for tag, value in record.items():
                if tag != "step":
                    rows[tag] = rows.get(tag, "") + f"{record['step']},{value}\n"
        for tag, text in rows.items():
            if tag not in self._files:
                self._files[tag] = AppendedFile(self._folder / f"{tag.replace('/', '_')}.csv")
                text = text if self._files[tag].path.exists() else f"step,{tag}\n{text}"
            self._files[tag].append(text.encode())


def _is_of_a_tag(path: Path) -> bool:
    """Whether a CSV file is one of ours. `csv_monitor.output_path` may name a folder that holds somebody's own as well."""
    try:
        with path.open("rb") as file:
            step, _, tag = file.readline().decode("utf-8", "replace").strip().partition(",")
    except OSError:
        return False
    return step == "step" and tag.replace("/", "_") == path.stem


MONITORS = ("tensorboard", "csv_monitor")
OWNER = ".run"
"""Beside curves outside of the run's folder: the folder of the run whose they are."""


def check_outputs(config: RunConfig) -> None:
    """Say before a start what the configuration asks for and nobody has installed, or another run has taken.

    Raises:
        ConfigError: With the way to have it.
    """
    if config.values.get("wandb", {}).get("enabled") and importlib.util.find_spec("wandb") is None:
        ways = "Install it (.venv/bin/python -m pip install wandb) or set it false."
        raise ConfigError(f"{config.path}: wandb.enabled = true, but wandb is not installed. {ways}")
    for name in MONITORS:
        folder, ours = monitor_folder(config, name), config.folder.resolve()
        owner = Path((folder / OWNER).read_text(encoding="utf-8")) if folder and (folder / OWNER).is_file() else ours
        # A run that was moved goes on.
        if owner != ours and (owner.name != ours.name or owner.exists()):
            raise ConfigError(
                f"{config.path}: {name} writes to {folder}, where the curves of the run in {owner} are; this one would drop them. "
                f"Set {name}.job_name to another name, leave out {name}.output_path for the run's own folder, or remove that folder."
            )


def mark_owner(config: RunConfig) -> None:
    """Write down whose curves they are, in folders that other runs can be told to write to."""
    for name in MONITORS:
        folder = monitor_folder(config, name)
        if folder and config.folder not in folder.parents:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / OWNER).write_text(str(config.folder.resolve()), encoding="utf-8")


class Wandb:
    """A session of wandb's, which is not installed unless somebody wants it."""

    def __init__(self, config: RunConfig) -> None:
        import wandb  # type: ignore[import-not-found]

        section: Mapping[str, Any] = config.values["wandb"]
        place = {"project": section.get("project"), "entity": section.get("team"), "group": section.get("group")}
        self._session = wandb.init(**place, name=config.run.name, config=config.values)
        self._output = Output("wandb")
        self._waiting: list[Mapping[str, float]] = []

    def write(self, records: Records) -> None:
        """Log the values of each, and before them those that could not be sent."""
        self._waiting += records
        self._output.attempt(self._send)

    def _send(self) -> None:
        while self._waiting:
            record = self._waiting[0]
            self._session.log({tag: value for tag, value in record.items() if tag != "step"}, step=int(record["step"]))
            del self._waiting[0]

    def close(self) -> None:
        """End the session."""
        self._output.attempt(self._session.finish)


def _drop_after(step: int, path: Path, step_of: Callable[[bytes], int]) -> None:
    """Rewrite a file without its lines of later steps, and without lines that a kill or a disk has damaged, which is said."""
    if not path.exists():
        return
    *lines, cut_short = path.read_bytes().split(b"\n")
    kept, damaged = [], int(bool(cut_short))
    for line in lines:
        try:
            kept += [line + b"\n"] if step_of(line) <= step else []
        except (ValueError, KeyError, TypeError):
            damaged += 1
    if damaged:
        log.warning("%s: damaged lines, which are left out: %d.", path, damaged)
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(kept))


def monitor_folder(config: RunConfig, name: str) -> Path | None:
    """Where a monitor of DeepSpeed's writes: `output_path`/`job_name` if given, else the run's folder; None if it is off."""
    section: Mapping[str, Any] = config.values.get(name, {})
    if not section.get("enabled", name == "tensorboard"):
        return None
    if section.get("output_path"):
        return Path(section["output_path"]) / section.get("job_name", config.run.name)
    return config.folder / name.removesuffix("_monitor")
