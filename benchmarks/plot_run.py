"""Draw a run's loss curves from its metrics.jsonl.

.venv/bin/python benchmarks/plot_run.py runs/quickstart docs/images/quickstart_loss.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    records = [json.loads(line) for line in (options.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    training = [(record["step"], record["train/loss"]) for record in records if "train/loss" in record]
    valid = [(record["step"], record["valid/loss"], record["valid/bits_per_char"]) for record in records if "valid/loss" in record]

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    axes.plot(*zip(*training, strict=True), color="#b5b5b5", linewidth=1, label="training, each step")
    axes.plot([point[0] for point in valid], [point[1] for point in valid], "o-", color="#a32638", label="held-out chapters")
    for step, loss, bits in valid:
        axes.annotate(f"{bits:.2f} bits/char", (step, loss), textcoords="offset points", xytext=(0, 8), ha="center", fontsize=8)
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)", title=options.run.name)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(options.picture, dpi=120)


if __name__ == "__main__":
    main()
