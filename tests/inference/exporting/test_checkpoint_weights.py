"""Weights out of real DeepSpeed checkpoints, bit for bit."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inference.exporting.checkpoint_weights import load_gpt
from inference.exporting.model_path import load_run_config
from model.config import ModelConfig
from model.gpt import GPT
from tests import processes
from tests.inference.conftest import STEPS, save_run
from training.checkpoints.find_and_verify import CheckpointError

pytestmark = pytest.mark.distributed


def saved(run: Path, step: int = STEPS[-1]) -> Path:
    return run / "checkpoints" / f"step{step:08d}"


def model_of(run: Path) -> ModelConfig:
    return load_run_config(run)[1]


def assert_same(state: dict[str, Tensor], seed: int, config: ModelConfig) -> None:
    wanted = GPT(config, seed=seed).state_dict()
    assert state.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], weight), name


@pytest.mark.parametrize("step", STEPS)
def test_masters_of_two_stages_and_two_replicas_are_read_exactly(saved_run: Path, step: int) -> None:
    assert_same(load_gpt(saved(saved_run, step), model_of(saved_run)).state_dict(), step, model_of(saved_run))


def test_the_layer_files_of_a_bf16_run_are_not_the_masters(saved_run: Path) -> None:
    # If they were equal, the test above would pass with a reader that takes the wrong files.
    state = load_gpt(saved(saved_run), model_of(saved_run)).state_dict()
    layer = torch.load(saved(saved_run) / "layer_02-model_states.pt", weights_only=True)
    assert layer["qkv.weight"].dtype == torch.bfloat16
    assert not torch.equal(layer["qkv.weight"].float(), state["2.qkv.weight"])


def test_reading_leaves_the_checkpoint_in_its_files(saved_run: Path) -> None:
    # A weight that no replica shares is a view of the mapped file, and so is the part of the flat piece around it.
    state = load_gpt(saved(saved_run), model_of(saved_run)).state_dict()
    whole = [weight for weight in state.values() if weight.untyped_storage().nbytes() > 4 * weight.numel()]
    assert whole, "every weight was copied"


def test_an_fp32_run_without_ties_on_one_stage_is_read_from_its_layer_files(tmp_path: Path, verse: Path) -> None:
    changes = {
        "bf16": None,
        "data_types": None,
        "pipeline": {"stages": 1},
        "train_batch_size": 2,
        "model": {
            "family": "llama",
            "vocab_size": 307,
            "max_seq_length": 64,
            "num_layers": 1,
            "hidden_size": 12,
            "num_heads": 2,
            "intermediate_size": 20,
        },
    }
    run = save_run(tmp_path / "fp32", verse, (1,), changes)
    assert_same(load_gpt(saved(run, 1), model_of(run)).state_dict(), 1, model_of(run))


def test_deepspeeds_own_script_does_not_read_the_checkpoint_of_a_pipeline(saved_run: Path, tmp_path: Path) -> None:
    """As docs/generation.md says; once it does, the page can change."""
    folders = [str(saved_run / "checkpoints"), str(tmp_path)]
    command = [sys.executable, "-m", "deepspeed.utils.zero_to_fp32", *folders, "-t", saved(saved_run).name]
    done = processes.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode != 0
    assert not list(tmp_path.iterdir())


def test_a_missing_replica_is_named(run: Path) -> None:
    (saved(run) / "bf16_zero_pp_rank_1_mp_rank_01_optim_states.pt").unlink()
    with pytest.raises(CheckpointError, match=r"has 1 \*_optim_states.pt of stage 1 where there were 2"):
        load_gpt(saved(run), model_of(run))


def test_a_missing_stage_is_a_missing_weight(run: Path) -> None:
    for path in saved(run).glob("*mp_rank_01_optim_states.pt"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r'has no "6.norm.bias" \(14 weights are missing\)'):
        load_gpt(saved(run), model_of(run))
