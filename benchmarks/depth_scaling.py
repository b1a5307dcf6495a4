"""Grow a trained OPT from 12 to 16 layers, cut it to 10, and see what is left of what it knew, before and after more training.

    .venv/bin/python benchmarks/depth_scaling.py [FOLDER] [--source-steps 400] [--steps 100]

The shipped `opt_125m_*` configurations, 128 features wide, on the novel. Runs are kept in FOLDER, and finished ones are not trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import ds_configs
from data.batches.datasets import open_datasets
from inference.export import export
from inference.exporting.model_path import find_model
from model.gpt import GPT
from model.layers.cross_entropy import loss
from training.config import RunConfig, resolve

NOVEL = {
    "corpus": "hongloumeng",
    "chapters": {"first": 1, "last": 80},
    "validation": {"last_documents": 5},
    "tokenizer": {"kind": "byte_bpe", "vocab_size": 5000},
    "seq_length": 128,
}
SIZES = {"vocab_size": 5000, "max_seq_length": 128, "hidden_size": 128, "num_heads": 4, "intermediate_size": 512}
ROWS = 32


def write_config(folder: Path, parent: str, name: str, changes: dict[str, Any]) -> Path:
    """A run that inherits a shipped one, small and on the novel; `changes` are for its model and its number of steps."""
    shipped = Path("ds_configs", f"{parent}.json").resolve()
    values = ds_configs.load(shipped).values
    without = dict.fromkeys(values["data"].keys() - {"tokenizer", "validation"})
    tokenizer = dict.fromkeys(values["data"]["tokenizer"].keys() - NOVEL["tokenizer"].keys()) | NOVEL["tokenizer"]
    lengths = dict.fromkeys({"epochs", "tokens"} & values["training"].keys())
    held_out = dict.fromkeys(values["data"]["validation"].keys()) | NOVEL["validation"]
    run = {
        "inherits": [str(shipped)],
        "run": {"directory": str(folder)},
        "train_batch_size": ROWS,
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": {"params": {"lr": 2e-3}},
        "scheduler": {"params": {"warmup_num_steps": 20}},
        "model": SIZES | changes["model"],
        "data": without | NOVEL | {"tokenizer": tokenizer, "validation": held_out},
        "training": {**lengths, "steps": changes["steps"], "eval_interval_steps": 1000, "save_interval_steps": 1000, "sample_tokens": 0},
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(run, indent=2), encoding="utf-8")
    return path


def train(path: Path) -> tuple[RunConfig, float]:
    """The run's configuration and its last held-out loss."""
    subprocess.run([sys.executable, "run_pretrain.sh", str(path)], check=True, stdout=subprocess.DEVNULL)
    config = resolve(ds_configs.load(path))
    return config, json.loads((config.folder / "results.json").read_text(encoding="utf-8"))["valid/loss"]


def loss_before_training(config: RunConfig) -> float:
    """Held-out nats per token of a run's first weights."""
    model = GPT(config.model, seed=config.run.seed).eval()
    valid = open_datasets(config.data, seed=config.run.seed).valid
    shape = {"num_replicas": 1, "micro_batch": 16}
    with torch.inference_mode():
        nats = [loss(model(inputs), labels).item() * labels.numel() for inputs, labels in valid.batches(replica=0, **shape)]
    return math.fsum(nats) / valid.num_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/depth_scaling"))
    parser.add_argument("--source-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    source, trained = train(write_config(options.folder, "opt_125m_scratch", "source", {"model": {}, "steps": options.source_steps}))
    weights = options.folder.resolve() / "weights"
    export(find_model(source.folder), weights, "opt")

    from_weights = {"model": {"initialize": {"folder": str(weights)}}, "steps": options.steps}
    paths = [
        write_config(options.folder, parent, parent.removeprefix("opt_125m_"), from_weights)
        for parent in ("opt_125m_pretrained", "opt_125m_depth_up_16", "opt_125m_depth_down_10")
    ]
    for layers in (16, 10):
        scratch = {"model": {"num_layers": layers}, "steps": options.steps}
        paths.append(write_config(options.folder, "opt_125m_scratch", f"scratch_{layers}", scratch))
    print(f"12 layers after {options.source_steps} steps: {trained:.3f} nats per held-out token\n")
    print(f"{'run':<16} {'layers':>6} {'before':>8} {f'after {options.steps} steps':>16}")
    for path in paths:
        before = loss_before_training(resolve(ds_configs.load(path)))
        config, after = train(path)
        print(f"{path.stem:<16} {config.model.num_layers:>6} {before:>8.3f} {after:>16.3f}", flush=True)


if __name__ == "__main__":
    main()
