"""Rank 0's outputs: the log line, the progress bar, samples, `log.txt`, and curves (`monitors.py`). A run can do without any of them."""

import logging
import sys

from training.checkpoints.find_and_verify import step_of, tag_of
from training.checkpoints.save import Saving
from training.config import RunConfig
from training.health.stage_clock import slow_phrase
from training.run_folder.monitors import MONITORS, CsvFiles, EventFile, MetricsFile, Output, Records, Wandb, mark_owner, monitor_folder

log = logging.getLogger(__name__)


class RunOutputs:
    """All outputs of a run. A start at step n drops from them what an earlier start wrote of the steps after n."""

    def __init__(self, config: RunConfig, *, last_step: int, start_step: int) -> None:
        self._config = config
        self._last_step = last_step
        self._samples = config.folder / "samples"
        self._sample_output = Output(str(self._samples))
        self._bar_output = Output("the progress bar")
        self._open(start_step)

    def _open(self, start_step: int) -> None:
        from tqdm import tqdm

        config = self._config
        self._sample_output.attempt(lambda: self._drop_samples(start_step))
        Output("the folder of the curves").attempt(lambda: mark_owner(config))
        board, csv = (monitor_folder(config, name) for name in MONITORS)
        self._board = EventFile(board, start_step) if board else None
        self._wandb = Wandb(config) if config.values.get("wandb", {}).get("enabled") else None
        metrics = MetricsFile(config.folder / "metrics.jsonl", start_step)
        self._curves = [to for to in (metrics, self._board, CsvFiles(csv, start_step) if csv else None, self._wandb) if to]
        # A bar in a log file is noise: it turns itself off where the output is no terminal.
        self._bar = tqdm(total=self._last_step, initial=start_step, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty())

    def go_back(self, step: int) -> None:
        """Drop what was written of the steps after this one: they come again."""
        self.close()
        Output(str(self._config.folder)).attempt(lambda: self._open(step))

    def advance(self, step: int) -> None:
        """Move the bar."""
        self._bar_output.attempt(lambda: self._bar.update(step - self._bar.n))

    def write(self, records: Records) -> None:
        """Append records of one or more steps."""
        for curves in self._curves:
            curves.write(records)

    def line(self, records: Records) -> None:
        """The one log line of an interval: the mean loss over it, everything else at its end."""
        last = records[-1]
        loss = sum(record["train/loss"] for record in records) / len(records)
        slow = slow_phrase(last)
        memory = max(value for tag, value in last.items() if tag.startswith("memory/"))
        self.say(
            f"step {last['step']}/{self._last_step} | loss {loss:.4f} | lr {last['optim/lr']:.2e} | grad {last['optim/grad_norm']:.2f} | "
            f"{_short(last['perf/tokens_per_second'])} tokens/s | {100 * last['perf/mfu']:.0f}% MFU | {memory:.1f} GiB"
            + (f" | {slow}" if slow else "")
        )

    def say(self, message: str) -> None:
        """Log without tearing the bar."""
        self._bar_output.attempt(self._bar.clear)
        log.info(message)
        self._bar_output.attempt(self._bar.refresh)

    def saved(self, saving: Saving) -> None:
        """A checkpoint was published. Called from the thread that saves."""
        times = f"{saving.seconds:.2f} s, the snapshot {saving.snapshot_seconds:.2f} s of them"
        self.say(f"step {saving.step}/{self._last_step} | saved {saving.target} ({times})")

    def passage(self, text: str, step: int) -> None:
        """A sample, for `samples/` and TensorBoard."""
        if self._board:
            self._board.text("sample", text, step)
        self._sample_output.attempt(lambda: self._write_sample(text, step))

    def _drop_samples(self, start_step: int) -> None:
        for path in self._samples.glob("*.txt"):
            if (step_of(path.stem) or 0) > start_step:
                path.unlink()

    def _write_sample(self, text: str, step: int) -> None:
        self._samples.mkdir(exist_ok=True)
        (self._samples / f"{tag_of(step)}.txt").write_text(text + "\n", encoding="utf-8")

    def close(self) -> None:
        """End the bar and wandb's session."""
        self._bar_output.attempt(self._bar.close)
        if self._wandb:
            self._wandb.close()


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


def _short(number: float) -> str:
    return f"{number / 1000:.1f}k" if number >= 1000 else f"{number:.0f}"
