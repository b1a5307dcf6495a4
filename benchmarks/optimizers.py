"""Train the quickstart with Muon and with AdamW, and draw both over steps, tokens and seconds.

.venv/bin/python benchmarks/optimizers.py FOLDER [--picture FILE] [dotted.key=value ...]

Runs lie in FOLDER, and finished ones are not trained again: AdamW for as many steps and for twice as many, as each length has a
schedule of its own. Seconds are of training alone, without evaluations and saves. Needs otherwise idle cores.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

STEPS = 100
TOKENS_PER_STEP = 8192
# Name, configuration, steps, colour.
RUNS = (
    ("Muon", "ds_configs/quickstart.json", STEPS, "#a32638"),
    ("AdamW", "ds_configs/ablations/quickstart_adamw.json", STEPS, "#8fa9bf"),
    ("AdamW, twice the steps", "ds_configs/ablations/quickstart_adamw.json", 2 * STEPS, "#2b5d8a"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--picture", type=Path, default=Path("docs/images/optimizers.png"))
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    curves = {}
    print(f"{'optimizer':<24} {'steps':>5} {'bits/char':>9} {'s of training':>13} {'highest norm':>12}")
    for name, config, steps, colour in RUNS:
        records = train(options.folder, config, steps, options.overrides)
        curves[name] = (points(records), colour)
        step, seconds, bits = curves[name][0][-1]
        norms = [record["optim/grad_norm"] for record in records if record.get("optim/grad_norm") and record["step"] > 10]
        print(f"{name:<24} {step:>5} {bits:>9.3f} {seconds:>13.0f} {max(norms):>12.2f}")
    draw(curves, options.picture)


def train(folder: Path, config: str, steps: int, overrides: list[str]) -> list[dict[str, Any]]:
    """The records of a run, trained if it is not there."""
    name = f"{Path(config).stem}_{steps}"
    metrics = folder / name / "metrics.jsonl"
    run = [f"run.directory={folder}", f"run.name={name}", f"training.steps={steps}", "training.eval_interval_steps=20"]
    command = [sys.executable, "run_pretrain.sh", config, *run, "training.sample_tokens=0", *overrides]
    if not (folder / name / "results.json").exists():
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
    return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]


def points(records: list[dict[str, Any]]) -> list[tuple[int, float, float]]:
    """(step, seconds of training so far, held-out bits per character) of every evaluation."""
    found, seconds, timed = [], 0.0, 0
    for record in records:
        if "perf/seconds_per_step" in record:
            seconds += record["perf/seconds_per_step"] * (record["step"] - timed)
            timed = record["step"]
        if "valid/bits_per_char" in record:
            found.append((record["step"], seconds, record["valid/bits_per_char"]))
    return found


def draw(curves: dict[str, Any], picture: Path) -> None:
    axes_of = (
        ("optimizer steps", lambda step, seconds: step),
        ("million tokens", lambda step, seconds: step * TOKENS_PER_STEP / 1e6),
        ("seconds of training", lambda step, seconds: seconds),
    )
    figure, panels = pyplot.subplots(1, 3, figsize=(12, 4), sharey=True, layout="constrained")
    for axes, (label, place) in zip(panels, axes_of, strict=True):
        for name, (curve, colour) in curves.items():
            axes.plot([place(step, seconds) for step, seconds, _ in curve], [bits for *_, bits in curve], ".-", color=colour, label=name)
        axes.set(xlabel=label)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(ylabel="held-out bits per character")
    panels[0].legend(frameon=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    main()
