"""Measure a step of one run under every way of cutting it into stages, in turns.

.venv/bin/python benchmarks/partitions.py [CONFIG] [--steps 24] [--rounds 2] [dotted.key=value ...]

Prints the cut, the share of work of the slowest stage, and the median time of a step of each method. The rounds alternate between
the methods, so that a machine that gets slower shows in all of them. Needs a prepared corpus and otherwise idle cores.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

METHODS = ("flops", "measured", "parameters", "uniform", "type:Attention|MLP")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="ds_configs/quickstart.json")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    facts: dict[str, str] = {}
    for _ in range(options.rounds):
        for method in METHODS:
            with tempfile.TemporaryDirectory() as folder:
                times, facts[method] = run(options, method, Path(folder))
            seconds[method] += times
    print(f"{'method':<20} {'first layers of the stages':<28} {'slowest':>8} {'s/step':>8}")
    for method in sorted(METHODS, key=lambda method: statistics.median(seconds[method])):
        print(f"{method:<20} {facts[method]} {statistics.median(seconds[method]):>8.3f}")


def run(options: argparse.Namespace, method: str, folder: Path) -> tuple[list[float], str]:
    """Seconds of each step but the first ones, and the cut."""
    overrides = ["run.name=partition", f"run.directory={folder}", f"training.steps={options.steps}", "training.log_interval_steps=1"]
    overrides += [
        "training.eval_interval_steps=1000000",
        "training.eval_batches=1",
        "training.sample_tokens=0",
        f"pipeline.partition={method}",
    ]
    command = [sys.executable, "run_pretrain.sh", options.config, *overrides, *options.overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    records = [json.loads(line) for line in (folder / "partition/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    manifest = json.loads(next(folder.glob("partition/checkpoints/*/manifest.json")).read_text(encoding="utf-8"))
    rows = [line.split() for line in done.stderr.splitlines() if line.split()[:1] and line.split()[0].isdigit()]
    slowest = max(float(row[4].rstrip("%")) for row in rows if len(row) > 4 and row[4].endswith("%"))
    seconds = [record["perf/seconds_per_step"] for record in records[4:] if "perf/mfu" in record]
    return seconds, f"{manifest['partition']!s:<28} {slowest:>7.1f}%"


if __name__ == "__main__":
    main()
