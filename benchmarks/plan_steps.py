"""How well `training.plan` foretells two-stage runs on this machine: each shape is trained, then planned and compared (`--against`).

.venv/bin/python benchmarks/plan_steps.py [SHAPE ...] [--folder FOLDER]

Needs otherwise idle cores. All shapes read the quickstart's text, which is prepared first if need be.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Layers, width, vocabulary, sequence, micro-batch, micro-batches, bf16, steps.
SHAPES = {
    "wide": (4, 512, 2000, 128, 4, 4, True, 24),
    "deep": (16, 256, 2000, 128, 4, 4, False, 24),
    "vocabulary": (2, 192, 16000, 128, 4, 4, True, 24),
    "update": (8, 704, 4000, 64, 2, 4, True, 24),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", help=f"of {', '.join(SHAPES)}; all without any")
    parser.add_argument("--folder", type=Path, help="for runs and token stores; a temporary one without")
    options = parser.parse_args()
    if unknown := set(options.shapes) - SHAPES.keys():
        parser.error(f"no such shape: {', '.join(sorted(unknown))}; there are {', '.join(SHAPES)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.shapes or SHAPES:
            config = write_config(name, folder)
            run_quietly(["./run_pretrain.sh", str(config)])
            print(f"{name}: layers, width, vocabulary, sequence, micro-batch, micro-batches, bf16, steps = {SHAPES[name]}")
            print(run_quietly([sys.executable, "-m", "training.plan", "--against", str(folder / "runs" / name)]), flush=True)


def write_config(name: str, folder: Path) -> Path:
    layers, width, vocabulary, sequence, micro_batch, micro_batches, bf16, steps = SHAPES[name]
    values = {
        "inherits": [
            str(ROOT / f"ds_configs/parts/{part}.json") for part in ("engine/pipeline2_zero1", "data/hongloumeng", "training/short")
        ],
        "run": {"name": name, "directory": str(folder / "runs")},
        "train_batch_size": micro_batch * micro_batches,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": micro_batches,
        "bf16": {"enabled": bf16},
        "optimizer": {"params": {"lr": 1e-4}},
        "model": {
            "family": "gpt2",
            "vocab_size": vocabulary,
            "max_seq_length": sequence,
            "num_layers": layers,
            "hidden_size": width,
            "num_heads": width // 64,
        },
        "data": {"seq_length": sequence, "directory": str(folder / "stores"), "tokenizer": {"vocab_size": vocabulary}},
        "training": {
            "steps": steps,
            "log_interval_steps": 4,
            "eval_interval_steps": steps,
            "save_interval_steps": steps // 2,
            "sample_tokens": 0,
        },
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def run_quietly(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
