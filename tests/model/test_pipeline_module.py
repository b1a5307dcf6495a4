"""The pipeline on two real ranks: what each holds, what it computes, how it is cut."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from model.flops import layer_work
from model.gpt import GPT
from model.hugging_face import conversion
from model.layers.cross_entropy import loss
from model.partition import balance
from tests.ranks import run_script
from tests.tiny_models import CASES, SEED, batch, large_llama

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder both ranks wrote to."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "SHARD_BYTES", 1_500_000)  # a file for each half-block
        conversion.to_folder(GPT(large_llama(), seed=77), large_llama(), folder / "llama", "llama")
    run_script("tests.model.pipeline_ranks", folder)
    return folder


@pytest.fixture(scope="module")
def found(ranks: Path) -> list[dict[str, Any]]:
    return [json.loads((ranks / f"found-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


def plain_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("tied_modules.embedding.", "0."): tensor for name, tensor in state.items()}


@pytest.mark.parametrize("name", CASES)
def test_pipelines_of_one_and_two_stages_start_from_the_plain_models_weights(ranks, found, name):
    plain = GPT(CASES[name], seed=SEED).state_dict()
    for rank in (0, 1):
        whole = plain_names(torch.load(ranks / f"{name}-1-{rank}.pt"))
        assert whole.keys() == plain.keys()
        assert all(torch.equal(whole[key], plain[key]) for key in plain)
    stages = [plain_names(torch.load(ranks / f"{name}-2-{rank}.pt")) for rank in (0, 1)]
    assert stages[0].keys() | stages[1].keys() == plain.keys()
    assert stages[0].keys() & stages[1].keys() == ({"0.weight"} if CASES[name].tie_embeddings else set())
    for stage in stages:
        assert all(torch.equal(tensor, plain[key]) for key, tensor in stage.items())
    assert found[0]["parts"][f"{name}-2"] == balance(layer_work(CASES[name], 24), 2)


def test_building_leaves_the_global_random_generators_alone(found):
    assert all(rank["generators untouched"] for rank in found)


def test_deepspeeds_own_methods_cut_where_deepspeed_does(found):
    for method, stock in found[0]["stock parts"].items():
        assert found[0]["parts"][method] == stock, method


def test_every_rank_cuts_at_the_same_layers_also_when_times_were_measured(found):
    assert found[0]["parts"] == found[1]["parts"]
    first, cut, last = found[0]["parts"]["measured"]
    assert (first, last) == (0, 8)
    assert 0 < cut < 8


def test_parts_decided_before_are_taken_as_they_are(found):
    assert found[0]["given parts"] == [0, 3, 8]


def test_two_stages_lose_what_the_plain_model_loses(found):
    model = GPT(CASES["untied"], seed=SEED).bfloat16()
    with torch.no_grad():
        expected = [loss(model(tokens), labels) for tokens, labels in (batch(CASES["untied"], 0), batch(CASES["untied"], 1))]
    first, _ = found[0]["without dropout"]
    assert first == pytest.approx((expected[0] + expected[1]).item() / 2, abs=1e-6)  # the same bf16 arithmetic, one fp32 mean


def test_activation_checkpointing_changes_no_loss_by_a_single_bit(found):
    losses = found[0]["losses"]
    assert len(losses) == 3
    assert all(loss == losses["plain"] for loss in losses.values()), losses


def test_each_stage_reads_only_its_own_layers_of_a_folder(ranks, found):
    weights = GPT(large_llama(), seed=77).state_dict()
    sizes = {path.name: path.stat().st_size for path in (ranks / "llama").glob("*.safetensors")}
    read = [{name: size for name, size in rank["resident"].items() if size} for rank in found]
    assert len(sizes) > 6
    assert read[0].keys() | read[1].keys() == sizes.keys()
    assert len(read[0].keys() & read[1].keys()) <= 1  # the file in which the second stage begins
    for rank in (0, 1):
        stage = torch.load(ranks / f"folder-{rank}.pt")
        assert all(torch.equal(tensor, weights[name]) for name, tensor in stage.items())
        assert len(stage) > 5


def test_masters_can_be_set_to_weights_that_bf16_cannot_hold(ranks):
    weights = GPT(large_llama(), seed=77).state_dict()
    for rank in (0, 1):
        masters = torch.load(ranks / f"masters-{rank}.pt")
        assert all(torch.equal(tensor, weights[name].bfloat16().float()) for name, tensor in masters["rounded"].items())
        assert all(torch.equal(tensor, weights[name]) for name, tensor in masters["exact"].items())
