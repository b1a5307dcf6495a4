"""How well `training.plan` foretells two-stage runs on this machine.

.venv/bin/python benchmarks/plan_steps.py [SHAPE ...] [--folder FOLDER]

Each shape is trained, then planned and compared (`--against`): its memory counts. Then ranks train it once more and stop every second step
to measure what a plan rests on, in their own processes, so that a machine whose speed drifts is as fast for the plan as for the steps:
their times count. Needs otherwise idle cores. All shapes read the quickstart's text, which is prepared first if need be.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# Layers, width, vocabulary, sequence, micro-batch, micro-batches, bf16, steps.
SHAPES = {
    "wide": (4, 512, 2000, 128, 4, 4, True, 24),
    "deep": (16, 256, 2000, 128, 4, 4, False, 24),
    "vocabulary": (2, 192, 16000, 128, 4, 4, True, 24),
    "update": (8, 704, 4000, 64, 2, 4, True, 24),
}
# Of the ranks that measure themselves: steps, and of those between two measurements, few because a machine's speed can change in seconds.
MEASURED_STEPS, TOGETHER = 48, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", help=f"of {', '.join(SHAPES)}; all without any")
    parser.add_argument("--rank", type=Path, metavar="CONFIG", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="for runs and token stores; a temporary one without")
    options, of_the_launcher = parser.parse_known_args()
    if options.rank:
        rank(options.rank)
    if of_the_launcher:
        parser.error(f"unrecognized arguments: {' '.join(of_the_launcher)}")
    if unknown := set(options.shapes) - SHAPES.keys():
        parser.error(f"no such shape: {', '.join(sorted(unknown))}; there are {', '.join(SHAPES)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.shapes or SHAPES:
            config = write_config(name, folder)
            run_quietly(["./run_pretrain.sh", str(config)])
            print(f"{name}: layers, width, vocabulary, sequence, micro-batch, micro-batches, bf16, steps = {SHAPES[name]}")
            print(run_quietly([sys.executable, "-m", "training.plan", "--against", str(folder / "runs" / name)]))
            print(run_quietly(*start_ranks(config)), flush=True)


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


def start_ranks(config: Path) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of two ranks that measure between their steps."""
    from training.launch.local import launcher

    command, environment = launcher(2)
    path = f"{ROOT}:{environment.get('PYTHONPATH', '')}"
    return [*command, str(Path(__file__).resolve()), "--rank", str(config)], {**environment, "DS_ACCELERATOR": "cpu", "PYTHONPATH": path}


def rank(config: Path) -> None:
    """One of them. Does not return."""
    from training import pretrain
    from training.launch.process_group import gather
    from training.planning.measured_plan import mean, plan_probed, update_size
    from training.planning.probe import probe
    from training.run import loop
    from training.run.engine import Engine

    name = json.loads(config.read_text(encoding="utf-8"))["run"]["name"] + "-measured"
    runs, planned, measured, works = [], [], [], []
    train, train_batch = loop.train, Engine.train_batch

    def look():
        probed = mean(gather(probe(runs[0].model, runs[0].workload, update_size(runs[0]))[0]))
        planned.append(plan_probed(runs[0], probed))

    def step(engine, batches):
        if engine.global_steps % TOGETHER == 0:
            look()
            measured.append([])
        gather(None)
        start = time.perf_counter()
        loss = train_batch(engine, batches)
        measured[-1].append(time.perf_counter() - start)
        if engine.global_steps % TOGETHER == 0:
            works.append([work for work, _ in gather(engine.clock.read())])
        return loss

    def whole_run(engine, run, *rest):
        runs.append(run)
        train(engine, run, *rest)
        look()
        if os.environ["RANK"] == "0":
            print(report(planned, measured, works), flush=True)

    loop.train, Engine.train_batch = whole_run, step
    # The log reads the same clock.
    never = [f"training.{when}_interval_steps=1000000" for when in ("log", "save", "eval")]
    sys.exit(pretrain.main([str(config), f"run.name={name}", f"training.steps={MEASURED_STEPS}", *never]))


def report(planned, measured, works) -> str:
    """Each group of steps beside the mean of the plans before and after it, and all of them; the first warms up."""
    lines = ["measured in the ranks, between their steps:", "                      planned   measured   planned / measured"]

    def compared(what, plans, found):
        between = [(before + after) / 2 for before, after in pairwise(plans)][1:]
        ratios = sorted(plan / one for plan, one in zip(between, found, strict=True))
        plan, one = statistics.fmean(between), statistics.fmean(found)
        lines.append(f"{what:<20}{plan:>9.3f}  {one:>9.3f}  {plan / one:>8.2f}   ({ratios[0]:.2f} to {ratios[-1]:.2f})")

    compared("seconds a step", [plan.step_seconds for plan in planned], [statistics.fmean(steps) for steps in measured[1:]])
    for stage in range(2):
        busy = [plan.played.busy[stage] + plan.seconds[stage].step for plan in planned]
        compared(f"work of stage {stage}", busy, [work[stage] for work in works[1:]])
    return "\n".join(lines)


def run_quietly(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
