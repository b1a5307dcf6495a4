"""Where a run comes from, kept in its folder: configuration, versions, code, and the text that it reads. No torch here."""

import importlib.metadata
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.store.identity import STORE_RECORD
from data.tokenizers.tokenizer_folder import fingerprint
from ds_configs.atomic_files import write_json
from training.config import RunConfig

if TYPE_CHECKING:
    from data.batches.datasets import Datasets

PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy")


def write_config(config: RunConfig, overrides: Sequence[str], facts: Mapping[str, Any]) -> None:
    """Write `config.json`: the resolved configuration, itself a config, and where it came from; `facts` found out at the start besides."""
    # Overrides to run.directory travel with the values, so the file starts the same run again from the same folder.
    record = {
        **config.values,
        "provenance": {
            "config": str(config.path),
            "overrides": list(overrides),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "python": sys.version.split()[0],
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "git_commit": _git_commit(),
            **facts,
        },
    }
    write_json(config.folder / "config.json", record, indent=2)


def software() -> list[str]:
    """What must be the same on all hosts of a job."""
    return [f"Python {platform.python_version()}", *(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "deepspeed"))]


def _git_commit() -> str | None:
    root = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=root, capture_output=True, text=True, check=False
        )
    except OSError:
        return None  # No git on a compute node: the rest of the record stands.
    return done.stdout.strip() or None


def keep_text(datasets: "Datasets", folder: Path) -> None:
    """Keep the tokenizer and the store's manifest in the run's folder, which is then enough to generate with, wherever it is taken."""
    target = folder / "tokenizer"
    if not target.is_dir() or fingerprint(target) != datasets.text["tokenizer"]:
        partial = folder / "tokenizer.tmp"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(datasets.folder / "tokenizer", partial)
        shutil.rmtree(target, ignore_errors=True)  # Of an earlier start with other text that ended before its first checkpoint.
        partial.rename(target)
    write_json(folder / STORE_RECORD, datasets.manifest)
