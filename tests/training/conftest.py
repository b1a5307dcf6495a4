"""Start tiny runs as real processes, and read what they wrote."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.forks import Forked
from tests.processes import LIMIT_SECONDS, end, start, wait_until
from tests.ranks import run_script


def train_many(jobs: list[dict[str, Any]]) -> str:
    """Train one configuration after the other in one set of processes (many_runs.py). Returns what rank 0 logged."""
    return run_script("tests.training.many_runs", json.dumps(jobs))


class TinyRun:
    """One run folder and the processes of one start at a time."""

    def __init__(self, config: Path, root: Path) -> None:
        self.config = config
        self.folder = config.parent / "runs" / config.stem
        self.root = root
        self.process: subprocess.Popen[str] | None = None
        self.output: Path | None = None
        """Takes what the start prints, if set: a start that prints more than a pipe holds would wait for `finish`."""

    def start(self, *overrides: str, ranks: int = 2, file_bytes: int = 0, fault: str = "", **environment: str) -> None:
        """Start the ranks and return at once. No file they write may grow over `file_bytes`; `fault` is one of faults.py's.

        With an environment of their own, which imports may read, they are not forked from what has imported everything before.
        """
        words = ["tests.training.fork_ranks", str(ranks), str(self.config), *overrides]
        settings = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "FAULT": fault, "FILE_BYTES": str(file_bytes)}
        if environment:
            self.start_command([sys.executable, "-m", *words], **settings | environment)
            return
        with self._writing() as output:
            self.process = Forked(*words, env={**os.environ, **settings}, stdout=output, stderr=subprocess.STDOUT, text=True)

    def start_command(self, command: Sequence[str], **environment: str) -> None:
        """Start the run by a command of one's own."""
        variables = {**os.environ, **environment}
        with self._writing() as output:
            self.process = start(command, cwd=self.root, env=variables, stdout=output, stderr=subprocess.STDOUT, text=True)

    def _writing(self) -> contextlib.AbstractContextManager[Any]:
        return self.output.open("wb") if self.output else contextlib.nullcontext(subprocess.PIPE)

    def start_as_a_person_does(self, *overrides: str) -> None:
        """`./run_pretrain.sh CONFIG ...`; the environment that runs these tests serves as its `.venv`."""
        if not (self.root / ".venv/bin/python").exists():
            pytest.skip("no .venv in the checkout; `make test` makes it")
        self.start_command(["./run_pretrain.sh", str(self.config), *overrides], OMP_NUM_THREADS="1")

    def finish(self) -> tuple[int, str]:
        """Wait for the end: exit code and everything that was printed."""
        assert self.process
        output, _ = self.process.communicate(timeout=LIMIT_SECONDS)
        return self.process.returncode, output

    def run(self, *overrides: str, ranks: int = 2) -> str:
        """Start, wait, insist on success."""
        self.start(*overrides, ranks=ranks)
        code, output = self.finish()
        assert code == 0, output
        return output

    def rank_process(self, rank: int) -> int:
        """Process id of a rank of the start that is going on."""
        assert self.process
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="utf-8").split()
        return int(children[rank])

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Poll fast: what is waited for can be over in milliseconds."""

        def met() -> bool:
            if condition():
                return True
            assert self.process
            if self.process.poll() is not None:
                printed = self.output.read_text(encoding="utf-8") if self.output else self.process.communicate()[0]
                raise AssertionError(f"ended before {what}: {printed}")
            return False

        wait_until(met, what)

    def records(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def curve(self) -> dict[int, tuple[float, float]]:
        """Step -> (loss, gradient norm), as written: bit for bit."""
        return {record["step"]: (record["train/loss"], record["optim/grad_norm"]) for record in self.records() if "train/loss" in record}

    def tags(self) -> list[str]:
        return sorted(path.parent.name for path in self.folder.glob("checkpoints/*/manifest.json"))

    def stop(self) -> None:
        """End whatever is left of this start, by process group."""
        if self.process:
            end(self.process)


@pytest.fixture(scope="session")
def tiny_values(verse: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A complete configuration of a model that trains in milliseconds. Measuring the processor's peak would take most of a start."""
    return {
        "run": {"seed": 7},
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "bf16": {"enabled": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {"stage": 1},
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.01, "betas": [0.9, 0.95], "weight_decay": 0.1, "torch_adam": True}},
        "scheduler": {"type": "WarmupCosineLR", "params": {"warmup_num_steps": 3, "warmup_type": "linear", "cos_min_ratio": 0.1}},
        "pipeline": {"stages": 2},
        "model": {
            "family": "gpt2",
            "vocab_size": 320,
            "max_seq_length": 32,
            "num_layers": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "dropout": 0.1,
        },
        "data": {
            "path": str(verse),
            "seq_length": 16,
            "directory": str(tmp_path_factory.mktemp("stores")),
            "chapters": {},
            "validation": {"last_documents": 2},
            "tokenizer": {"kind": "byte_bpe", "vocab_size": 320},
        },
        "training": {
            "steps": 8,
            "log_interval_steps": 1,
            "eval_interval_steps": 4,
            "eval_batches": 4,
            "sample_tokens": 4,
            "save_interval_steps": 2,
            "keep_checkpoints": 10,
            "peak_tflops_per_device": 0.1,
        },
    }


@pytest.fixture(scope="session")
def make_run(tiny_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[Callable[..., TinyRun]]:
    """Make a tiny run; keyword arguments replace whole values by their dotted key with "__" for the dot."""
    from data.config import DataConfig
    from data.prepare import prepare
    from ds_configs import build_section

    prepare(build_section(DataConfig, tiny_values["data"], "data", "tiny"))
    made: list[TinyRun] = []

    def make(**changes: Any) -> TinyRun:
        folder = tmp_path_factory.mktemp("run")
        values = json.loads(json.dumps(tiny_values))
        values["run"]["directory"] = str(folder / "runs")
        for key, value in changes.items():
            *sections, last = key.split("__")
            target = values
            for section in sections:
                target = target.setdefault(section, {})
            target[last] = value
        config = folder / "tiny.json"
        config.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
        made.append(TinyRun(config, root))
        return made[-1]

    yield make
    for one in made:
        one.stop()
