"""Rank 0's outputs: log line, progress bar, `metrics.jsonl`, TensorBoard, and CSV or wandb if the configuration asks.

A run can do without any of them. While one cannot be written, that is said once, training goes on, and every further write tries
again with what is missing.
"""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ds_configs.files import write_text
from training.checkpoints.published import tag_of
from training.config import RunConfig
from training.run_folder.strict_json import strict_json

log = logging.getLogger(__name__)


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
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            end = os.fstat(file).st_size
            rest = memoryview(self._waiting)
            try:
                while rest:
                    rest = rest[os.write(file, rest) :]
            except OSError:
                os.ftruncate(file, end)
                raise
        finally:
            os.close(file)


class EventFile:
    """What TensorBoard reads. torch's SummaryWriter writes from a thread that dies at the first error and takes the values with it."""

    def __init__(self, folder: Path, start_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._record_writer = Event, RecordWriter
        self._file = AppendedFile(folder / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0")
        # The second event makes readers drop what an earlier start wrote of the steps that come again, from step 1 on too.
        started = self._encode(step=start_step + 1, session_log=SessionLog(status=SessionLog.START))
        self._file.append(self._encode(file_version="brain.Event:2") + started)

    def write(self, records: Sequence[Mapping[str, float]]) -> None:
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


class CsvFiles:
    """One file a tag, as DeepSpeed's CSV monitor writes them: `train/loss` in `train_loss.csv`, a row a step."""

    def __init__(self, folder: Path, start_step: int) -> None:
        self._folder = folder
        self._files: dict[str, AppendedFile] = {}
        for path in folder.glob("*.csv"):
            _keep_lines(path, lambda line: not line[:1].isdigit() or int(line.partition(",")[0]) <= start_step)

    def write(self, records: Sequence[Mapping[str, float]]) -> None:
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


class Writer:
    """All outputs of a run. A start at step n drops from them what an earlier start wrote of the steps after n."""

    def __init__(self, config: RunConfig, *, last_step: int, start_step: int) -> None:
        from tqdm import tqdm

        self._last_step = last_step
        self._samples = config.folder / "samples"
        self._sample_output = Output(str(self._samples))
        self._metrics = AppendedFile(config.folder / "metrics.jsonl")
        _drop_steps_after(start_step, self._metrics.path)
        folders = {name: _folder(config, name) for name in ("tensorboard", "csv_monitor")}
        self._board = EventFile(folders["tensorboard"], start_step) if folders["tensorboard"] else None
        self._csv = CsvFiles(folders["csv_monitor"], start_step) if folders["csv_monitor"] else None
        self._wandb, self._wandb_output = _wandb(config), Output("wandb")
        # A bar in a log file is noise: it turns itself off where the output is no terminal.
        self._bar = tqdm(total=last_step, initial=start_step, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty())
        self._bar_output = Output("the progress bar")

    def advance(self, step: int) -> None:
        """Move the bar."""
        self._bar_output.attempt(lambda: self._bar.update(step - self._bar.n))

    def write(self, records: Sequence[Mapping[str, float]]) -> None:
        """Append records of one or more steps."""
        self._metrics.append("".join(strict_json(record) + "\n" for record in records).encode())
        if self._board:
            self._board.write(records)
        if self._csv:
            self._csv.write(records)
        if self._wandb:
            self._wandb_output.attempt(lambda: self._send(records))

    def _send(self, records: Sequence[Mapping[str, float]]) -> None:
        for record in records:
            self._wandb.log({tag: value for tag, value in record.items() if tag != "step"}, step=int(record["step"]))

    def line(self, records: Sequence[Mapping[str, float]]) -> None:
        """The one log line of an interval: the mean loss over it, everything else at its end."""
        last = records[-1]
        loss = sum(record["train/loss"] for record in records) / len(records)
        memory = max(value for tag, value in last.items() if tag.startswith("memory/"))
        self.say(
            f"step {last['step']}/{self._last_step} | loss {loss:.4f} | lr {last['optim/lr']:.2e} | grad {last['optim/grad_norm']:.2f} | "
            f"{_short(last['perf/tokens_per_second'])} tokens/s | {100 * last['perf/mfu']:.0f}% MFU | {memory:.1f} GiB"
        )

    def say(self, message: str) -> None:
        """Log without tearing the bar."""
        self._bar_output.attempt(self._bar.clear)
        log.info(message)
        self._bar_output.attempt(self._bar.refresh)

    def passage(self, text: str, step: int) -> None:
        """A sample, for `samples/` and TensorBoard."""
        if self._board:
            self._board.text("sample", text, step)
        self._sample_output.attempt(lambda: self._write_sample(text, step))

    def _write_sample(self, text: str, step: int) -> None:
        self._samples.mkdir(exist_ok=True)
        (self._samples / f"{tag_of(step)}.txt").write_text(text + "\n", encoding="utf-8")

    def close(self) -> None:
        """End the bar and wandb's session."""
        self._bar_output.attempt(self._bar.close)
        if self._wandb:
            self._wandb_output.attempt(self._wandb.finish)


class LogFile(logging.FileHandler):
    """`log.txt`. Python's own handler prints a trace for every line that a full disk refuses."""

    refused = 0

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        """Say it once; the lines are on the terminal all the same."""
        self.refused += 1
        if self.refused == 1:
            print(f"{self.baseFilename} cannot be written: {sys.exc_info()[1]}. Training goes on.", file=sys.stderr, flush=True)


def open_log(config: RunConfig) -> None:
    """Rank 0 speaks on the terminal and in `log.txt`."""
    logging.getLogger("training").setLevel(logging.INFO)
    logging.getLogger("model").setLevel(logging.INFO)
    handler = LogFile(config.folder / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger().addHandler(handler)


def _drop_steps_after(step: int, metrics: Path) -> None:
    """Drop records of steps that a resumed run is about to do again, and the line a kill cut short."""

    def is_kept(line: str) -> bool:
        try:
            return bool(json.loads(line)["step"] <= step)
        except (ValueError, KeyError, TypeError):
            return False

    _keep_lines(metrics, is_kept)


def _keep_lines(path: Path, is_kept: Callable[[str], bool]) -> None:
    """Rewrite a text file with some of its lines, in one step."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        write_text(path, "".join(line + "\n" for line in lines if is_kept(line)))


def _short(number: float) -> str:
    return f"{number / 1000:.1f}k" if number >= 1000 else f"{number:.0f}"


def _folder(config: RunConfig, name: str) -> Path | None:
    """Where a monitor of DeepSpeed's writes: `output_path`/`job_name` if given, else the run's folder; None if it is off."""
    section: Mapping[str, Any] = config.values.get(name, {})
    if not section.get("enabled", name == "tensorboard"):
        return None
    if section.get("output_path"):
        return Path(section["output_path"]) / section.get("job_name", config.run.name)
    return config.folder / name.removesuffix("_monitor")


def _wandb(config: RunConfig) -> Any:
    section: Mapping[str, Any] = config.values.get("wandb", {})
    if not section.get("enabled", False):
        return None
    import wandb  # type: ignore[import-not-found]  # Optional: only a run that asks for it needs it.

    return wandb.init(
        project=section.get("project"), entity=section.get("team"), group=section.get("group"), name=config.run.name, config=config.values
    )
