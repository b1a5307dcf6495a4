"""How long training waits for a save that it watches, and for one behind it; in turns, in one process.

.venv/bin/python benchmarks/saves.py [--layers 12] [--width 768] [--rounds 5] [--folder FOLDER]

One rank on one thread trains a GPT-2 of random text; FOLDER should be on the disk that runs are saved to. Per round: a save that is waited
for, some steps without a save, then a save behind steps. Needs otherwise idle cores.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import ds_configs
from training.checkpoints.save import Saver
from training.config import RunConfig, resolve
from training.launch.local import free_port
from training.launch.process_group import prepare_environment, start
from training.launch.world import World
from training.run.engine import build_engine, build_module

PLAIN_STEPS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        config = configuration(options.layers, options.width, Path(folder))
        measure(config, options.rounds)


def configuration(layers: int, width: int, folder: Path) -> RunConfig:
    """A run of one rank; its data are never opened."""
    values = {
        "run": {"name": "saves", "directory": str(folder)},
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": False},
        "zero_optimization": {"stage": 1},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}},
        "pipeline": {"stages": 1},
        "model": {"family": "gpt2", "vocab_size": 50304, "max_seq_length": 64, "num_layers": layers, "hidden_size": width, "num_heads": 12},
        "data": {"path": "none.txt", "seq_length": 64, "tokenizer": {"kind": "byte_bpe", "vocab_size": 50304}},
        "training": {"steps": 1000},
    }
    path = folder / "saves.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return resolve(ds_configs.load(path), 1)


def measure(config: RunConfig, rounds: int) -> None:
    world = World(rank=0, local_rank=0, size=1, local_size=1, master_addr="127.0.0.1", master_port=free_port())
    prepare_environment(world)
    ranks = start(world, 1)
    engine = build_engine(build_module(config, ranks), config, ranks)
    row = torch.randint(0, config.model.vocab_size, (1, config.data.seq_length))
    batches = itertools.repeat((row, row))
    engine.train_batch(batches)
    watched, behind = (Saver(ranks, config.folder, keep=1, copy=copy) for copy in (False, True))
    table: dict[str, list[float]] = {name: [] for name in ("watched", "snapshot", "step", "step beside a save", "save behind steps")}
    for _ in range(rounds):
        engine.train_batch(batches)
        began = time.monotonic()
        watched.start(engine, {})
        watched.finish()
        table["watched"].append(time.monotonic() - began)
        for _ in range(PLAIN_STEPS):
            began = time.monotonic()
            engine.train_batch(batches)
            table["step"].append(time.monotonic() - began)
        began = time.monotonic()
        behind.start(engine, {})
        table["snapshot"].append(time.monotonic() - began)
        while behind.is_writing:
            began = time.monotonic()
            engine.train_batch(batches)
            table["step beside a save"].append(time.monotonic() - began)
        table["save behind steps"].append(behind.finish())
    size = sum(path.stat().st_size for path in config.folder.glob("checkpoints/step*/*"))
    parameters = sum(weight.numel() for weight in engine.module.parameters())
    print(f"{parameters / 1e6:.0f} M parameters, checkpoint of {size / 2**30:.2f} GiB; medians of seconds:")
    for name, seconds in table.items():
        print(f"  {name:<20} {statistics.median(seconds):7.3f}   (from {min(seconds):.3f} to {max(seconds):.3f}, {len(seconds)} times)")
    ratio = statistics.median(table["snapshot"]) / statistics.median(table["watched"])
    print(f"training waits {100 * ratio:.1f}% of the time of a save that it watches")


if __name__ == "__main__":
    main()
