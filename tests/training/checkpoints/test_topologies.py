"""Both optimizers in both precisions through the pipeline: stages, replicas, a plain loop with torch's optimizers, resume, re-sharding.

The model is tied, and so small that its matrices are cut in the middle by the pieces that replicas hold.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import ds_configs
from inference.exporting.checkpoint_weights import load_gpt
from tests.training.conftest import train_many
from tests.training.plain_loop import PlainRun, train_plainly
from training.config import RunConfig, resolve, with_precision

STEPS, HALF = 8, 4
MUON = {
    "type": "Muon",
    "params": {"torch_adam": True, "muon_lr": 0.01, "adam_lr": 0.005, "momentum": 0.9, "betas": [0.9, 0.95], "weight_decay": 0.1},
}
# No end in it, so that half a run is the first half of the whole.
SCHEDULE = {"type": "WarmupCosineLR", "params": {"warmup_num_steps": 100, "warmup_type": "linear", "warmup_min_ratio": 0.2}}
ADAMW = {
    "type": "AdamW",
    "params": {
        "torch_adam": True,
        "lr": 0.01,
        "muon_lr": None,
        "adam_lr": None,
        "momentum": None,
        "betas": [0.9, 0.95],
        "weight_decay": 0.1,
    },
}
# Stages and replicas; the first is what the others are held against.
TOPOLOGIES = {"1x1": (1, 1), "2x1": (2, 1), "1x2": (1, 2), "2x2": (2, 2), "1x4": (1, 4), "2x4": (2, 4)}
OPTIMIZERS = {"muon": MUON, "adamw": ADAMW}
CASES = [
    (topology, precision, optimizer)
    for optimizer in OPTIMIZERS
    for precision in ("fp32", "bf16")
    for topology in TOPOLOGIES
    if (topology != "2x4" or (precision, optimizer) == ("fp32", "adamw"))  # Eight ranks once: two cores take their time.
]
EXACT = {"fp32": 1e-5, "bf16": 1e-3}


SETTING = {"fp32": "bf16.enabled=false", "bf16": "bf16.enabled=true"}
HALVES = [("fp32", "muon"), ("bf16", "muon"), ("fp32", "adamw")]


class Runs:
    """Tiny runs under names that say topology, precision and optimizer."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.folder = folder
        # By default DeepSpeed adds the fp32 sums of replicas up in bf16, which a plain loop does not do (docs/upstream.md).
        self.values = json.loads(json.dumps(values)) | {"scheduler": SCHEDULE, "communication_data_type": "fp32"}
        self.values["model"]["dropout"] = 0.0
        self.values["run"]["directory"] = str(folder)
        quiet = {"eval_interval_steps": 1000, "save_interval_steps": HALF, "sample_tokens": 0}
        self.values["training"] |= {"steps": STEPS, **quiet}
        self.jobs: list[dict[str, Any]] = []
        self.log = ""

    def add(self, name: str, stages: int, replicas: int, *overrides: str) -> None:
        """Train a run, or train one of that name on."""
        config = self.folder / f"{name}.json"
        optimizer = OPTIMIZERS["adamw" if name.endswith("adamw") else "muon"]
        config.write_text(json.dumps({**self.values, "optimizer": optimizer}, ensure_ascii=False), encoding="utf-8")
        common = [f"pipeline.stages={stages}", "scheduler.params.warmup_num_steps=100"]
        self.jobs.append({"config": str(config), "overrides": [*common, *overrides], "world": stages * replicas})

    def curve(self, name: str) -> dict[int, tuple[float, float]]:
        """Step -> (loss, gradient norm)."""
        lines = (self.folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [record for record in map(json.loads, lines) if "train/loss" in record]
        return {record["step"]: (record["train/loss"], record["optim/grad_norm"]) for record in records}

    def plain(self, name: str, bf16: bool) -> PlainRun:
        """The same training in a plain loop, with torch's optimizers."""
        lines = (self.folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rates = [record["optim/lr"] for record in map(json.loads, lines) if "optim/lr" in record]
        return train_plainly(self.config(name, bf16), rates)

    def config(self, name: str, bf16: bool) -> RunConfig:
        return with_precision(resolve(ds_configs.load(self.folder / f"{name}.json")), bf16)


@pytest.fixture(scope="module")
def runs(tiny_values: dict[str, Any], make_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All of them, trained; `make_run` has prepared the text."""
    made = Runs(tmp_path_factory.mktemp("muon"), tiny_values)
    # In this order few process groups are made.
    for topology, precision, optimizer in sorted(CASES):
        made.add(f"{topology}_{precision}_{optimizer}", *TOPOLOGIES[topology], SETTING[precision])
    made.add("changed", 2, 1, "bf16.enabled=true", f"training.steps={HALF}")
    made.add("changed", 2, 1, "bf16.enabled=false")
    made.add("kept", 2, 1, "bf16.enabled=false", f"training.steps={HALF}")
    made.add("kept", 2, 1, 'bf16.enabled="auto"')
    for name in ("halves", "moved"):
        for precision, optimizer in HALVES:
            made.add(f"{name}_{precision}_{optimizer}", *TOPOLOGIES["2x2"], SETTING[precision], f"training.steps={HALF}")
    for name, last in (("halves", TOPOLOGIES["2x2"]), ("moved", TOPOLOGIES["1x1"])):
        for precision, optimizer in HALVES:
            made.add(f"{name}_{precision}_{optimizer}", *last, SETTING[precision])
    made.log = train_many(made.jobs)
    return made


pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(("topology", "precision", "optimizer"), CASES)
def test_stages_and_replicas_train_as_one_process_and_as_a_plain_loop_with_torchs_optimizers(runs, topology, precision, optimizer):
    exact = EXACT[precision]
    found, single = runs.curve(f"{topology}_{precision}_{optimizer}"), runs.curve(f"1x1_{precision}_{optimizer}")
    assert len(found) == STEPS
    for index in (0, 1):  # Losses, then norms: sums in another order differ in the last bits of the precision.
        assert [pair[index] for pair in found.values()] == pytest.approx([pair[index] for pair in single.values()], abs=exact, rel=exact)
    plain = runs.plain(f"{topology}_{precision}_{optimizer}", precision == "bf16")
    assert [loss for loss, _ in found.values()] == pytest.approx(plain.losses, abs=exact)
    assert [norm for _, norm in found.values()] == pytest.approx(plain.norms, abs=5 * exact, rel=5 * exact)
    assert max(plain.norms) > 1, "clipping took part"
    assert plain.losses[-1] < plain.losses[0] - 0.15, "the losses fall, so equal ones mean something"


@pytest.mark.parametrize(("precision", "optimizer"), HALVES)
def test_a_resumed_run_of_two_replicas_is_the_uninterrupted_one_bit_for_bit(runs, precision, optimizer):
    assert runs.curve(f"halves_{precision}_{optimizer}") == runs.curve(f"2x2_{precision}_{optimizer}")


@pytest.mark.parametrize(("precision", "optimizer"), HALVES)
def test_moments_and_masters_move_to_another_topology(runs, precision, optimizer):
    assert "was saved with another topology" in runs.log
    assert "changed since the checkpoint: learning rate" not in runs.log
    moved, stayed = runs.curve(f"moved_{precision}_{optimizer}"), runs.curve(f"2x2_{precision}_{optimizer}")
    assert list(moved) == list(stayed)
    assert [loss for loss, _ in moved.values()] == pytest.approx([loss for loss, _ in stayed.values()], abs=2 * EXACT[precision])


def test_another_precision_at_a_resume_goes_on_from_the_exact_masters_and_is_said(runs):
    assert "changed since the checkpoint: precision bf16 -> fp32; the fp32 masters stay exact" in runs.log
    saved = load_gpt(runs.folder / f"changed/checkpoints/step{HALF:08d}", runs.config("changed", True).model).state_dict()
    for stage in (0, 1):
        weights, masters = torch.load(runs.folder / f"changed/start-{stage}.pt")
        for name, master in masters.items():
            plain = name.replace("tied_modules.embedding.", "0.")
            assert torch.equal(master.view(-1), saved[plain].view(-1))
            assert torch.equal(weights[name].view(-1), master.view(-1)), "fp32 weights are the masters"
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in saved.values()), "bf16 could not hold them"
    changed, stayed = runs.curve("changed"), runs.curve("2x1_bf16_muon")
    assert changed[HALF] == stayed[HALF]
    assert changed[STEPS][0] == pytest.approx(stayed[STEPS][0], abs=5e-3)  # bf16 rounds what fp32 does not.


def test_a_resumed_run_keeps_the_precision_it_was_started_in(runs):
    assert "precision: fp32, as the run was started" in runs.log
    assert runs.curve("kept") == runs.curve("2x1_fp32_muon")
