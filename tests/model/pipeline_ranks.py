"""What each of two ranks does in test_pipeline_module.py: builds pipelines of both shapes and writes down what it holds.

python -m tests.model.pipeline_ranks FOLDER
"""

import json
import logging
import random
import re
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.pipe.topology import ProcessTopology
from deepspeed.utils import safe_get_full_fp32_param

from model.config import ModelConfig
from model.flops import Workload
from model.pipeline import GPTPipeline, choose_parts
from tests.ranks import fork
from tests.tiny_models import CASES, SEED, batch, large_llama
from training.launch.process_group import Ranks

WORKLOAD = Workload(seq_length=24, micro_batch=2, micro_batches=2, replicas=1, bf16=True, sends_bf16=True)
SETTINGS = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 2,
    "optimizer": {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}},
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "zero_optimization": {"stage": 1},
    "pipeline": {"use_reentrant": False},
}


def topology(stages: int) -> ProcessTopology:
    return ProcessTopology(axes=["data", "pipe"], dims=[2 // stages, stages])


def engine_over(module: PipelineModule) -> Any:
    engine, *_ = deepspeed.initialize(model=module, model_parameters=module.parameters(), config=SETTINGS)
    return engine


def build(config: ModelConfig, stages: int, **settings: Any) -> PipelineModule:
    parts = choose_parts(config, "flops", WORKLOAD, stages)
    return GPTPipeline(config, topology=topology(stages), seed=SEED, **{"parts": parts, **settings})


def step_loss(config: ModelConfig, interval: int = 0) -> tuple[float, float]:
    """Loss of one step on two stages, and of an evaluation after it."""
    engine = engine_over(build(config, 2, activation_checkpoint_interval=interval))
    torch.manual_seed(11)
    first = engine.train_batch(iter([batch(config, 0), batch(config, 1)])).item()
    after = engine.eval_batch(iter([batch(config, 2)]), num_micro_batches=1).item()
    return first, after


def start_from_folder(folder: Path, rank: int) -> dict[str, int]:
    """Start a stage from the folder; returns how much of each of its files is in this process's memory.

    Weights as built, and masters as set from them, are left in files.
    """
    config = large_llama(folder / "llama")
    module = build(config, 2)
    resident = resident_bytes(folder / "llama")
    torch.save(module.state_dict(), folder / f"folder-{rank}.pt")
    engine_over(module)
    rounded = {name: safe_get_full_fp32_param(weight).clone() for name, weight in module.named_parameters()}
    module.set_fp32_masters()
    exact = {name: safe_get_full_fp32_param(weight) for name, weight in module.named_parameters()}
    torch.save({"rounded": rounded, "exact": exact}, folder / f"masters-{rank}.pt")
    return resident


def resident_bytes(folder: Path) -> dict[str, int]:
    """Bytes of each mapped file of a folder that this process has read (Linux)."""
    found: dict[str, int] = {}
    name = ""
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            path = Path(line.split(maxsplit=5)[-1])
            name = path.name if path.parent == folder else ""
        elif name and line.startswith("Rss:"):
            found[name] = found.get(name, 0) + 1024 * int(line.split()[1])
    return found


def main(ranks: Ranks, folder: Path) -> None:
    rank = ranks.world.rank
    found: dict[str, Any] = {"parts": {}, "stock parts": {}, "losses": {}}
    # DeepSpeed's own reports are of no use here.
    logging.disable(logging.WARNING)
    torch.manual_seed(3)
    random.seed(3)
    states = torch.get_rng_state(), random.getstate()

    for name, config in CASES.items():
        for stages in (1, 2):
            module = build(config, stages)
            torch.save(module.state_dict(), folder / f"{name}-{stages}-{rank}.pt")
            found["parts"][f"{name}-{stages}"] = module.parts
    found["generators untouched"] = torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]

    config = CASES["gpt2"]
    specs = module._layer_specs  # of the last case: the same number of layers as every other
    for method in ("uniform", "parameters", "type:attention|mlp", "measured"):
        found["parts"][method] = choose_parts(list(CASES.values())[-1], method, WORKLOAD, 2)
        if method != "measured":
            found["stock parts"][method] = [
                int(part) for part in PipelineModule(specs, topology=topology(2), partition_method=method).parts
            ]
    found["given parts"] = build(config, 2, parts=(0, 3, 8)).parts

    found["without dropout"] = step_loss(CASES["untied"])
    found["losses"]["plain"] = step_loss(config)
    for interval in (1, 2):
        SETTINGS["pipeline"] = {"use_reentrant": False, "activation_checkpoint_interval": interval}
        found["losses"][f"every {interval}"] = step_loss(config, interval)
    found["resident"] = start_from_folder(folder, rank)
    (folder / f"found-{rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    fork(main, Path(sys.argv[1]), size=2, stages=2)
