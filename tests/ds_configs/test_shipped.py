"""Every configuration that is shipped is good, and says what the project promises about it."""

import json
from pathlib import Path

import pytest

import ds_configs
from ds_configs import load
from model.flops import count_parameters
from tests import ROOT
from training.config import resolve

pytestmark = pytest.mark.usefixtures("at_the_root")

RUNS = sorted(path.name for path in (ROOT / "ds_configs").glob("*.json"))
ABLATIONS = sorted(path.name for path in (ROOT / "ds_configs/ablations").glob("*.json"))


@pytest.mark.parametrize("name", [*RUNS, *(f"ablations/{name}" for name in ABLATIONS)])
def test_a_shipped_run_is_good_and_described(name):
    run = resolve(load(f"ds_configs/{name}"))
    assert run.run.description
    assert run.run.name == Path(name).stem


def test_the_runs_that_are_promised_are_there():
    opt = {f"opt_125m_{start}.json" for start in ("scratch", "pretrained", "depth_down_10", "depth_up_16")}
    llama = {"toy_reverse.json", "scifi_llama_104m.json", "tinyllama_zh_1b.json"}
    assert set(RUNS) == {"quickstart.json", "own_text.json", "hongloumeng_500m.json", "poetry_gpt2_26m.json"} | llama | opt


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("hongloumeng_500m", 499_750_560),
        ("poetry_gpt2_26m", 26_222_208 + 128 * 384),  # the first is without the position table
        ("opt_125m_scratch", 125_239_296),
        ("tinyllama_zh_1b", 1_235_314_688),  # as LlamaForCausalLM of the same shape
    ],
)
def test_a_models_size_is_the_one_that_is_known(name, parameters):
    assert count_parameters(resolve(load(f"ds_configs/{name}.json")).model) == parameters


def test_the_reference_run_pins_its_world_to_32_pipelines_of_six_stages():
    run = resolve(load("ds_configs/hongloumeng_500m.json"))
    assert (run.batch.replicas, run.batch.stages, run.batch.world_size) == (32, 6, 192)
    assert run.last_step() == 4000
    assert run.model.dropout == 0.1
    assert run.values["optimizer"]["params"]["lr"] == 3e-5
    with pytest.raises(ds_configs.ConfigError, match="gradient_accumulation_steps=null"):
        resolve(load("ds_configs/hongloumeng_500m.json"), world_size=6)
    fewer = resolve(load("ds_configs/hongloumeng_500m.json", ["gradient_accumulation_steps=null"]), world_size=6)
    assert (fewer.batch.train_batch_size, fewer.batch.accumulation) == (768, 768)


def test_every_run_fits_its_precision_to_the_machine_with_zero_1_and_fp32_sums_and_never_writes_the_schedules_length():
    for name in RUNS:
        values = load(f"ds_configs/{name}").values
        assert values["bf16"] == {"enabled": "auto"}
        assert values["zero_optimization"]["stage"] == 1
        assert values["data_types"]["grad_accum_dtype"] == "fp32"
        assert values["optimizer"]["params"]["torch_adam"] is True
        assert values["scheduler"]["params"]["warmup_type"] == "linear"
        assert "total_num_steps" not in values["scheduler"]["params"]


@pytest.mark.parametrize("parent", ["quickstart", "hongloumeng_500m"])
def test_a_main_run_has_ablations_that_change_one_thing_in_ten_lines(parent):
    names = [name for name in ABLATIONS if name.startswith(parent)]
    assert len(names) == 4
    for name in names:
        text = (ROOT / "ds_configs/ablations" / name).read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 10
        changed = json.loads(text)
        assert changed.pop("inherits") == [f"../{parent}.json"]
        changed.pop("run")
        if "optimizer" in changed:
            assert changed.keys() == {"optimizer"}  # Another one, or other rates, come with several values.
            continue
        leaves = changed
        while isinstance(leaves, dict):
            assert len(leaves) == 1
            (leaves,) = leaves.values()


def test_every_run_has_its_twin_with_the_other_optimizer():
    for name in RUNS:
        if name == "own_text.json":
            continue  # The quickstart with other text.
        run = resolve(load(f"ds_configs/{name}"))
        other = "adamw" if run.optimizer_type == "Muon" else "muon"
        twin = resolve(load(f"ds_configs/ablations/{run.run.name}_{other}.json"))
        assert twin.optimizer_type == {"adamw": "AdamW", "muon": "Muon"}[other]
        assert (twin.model, twin.data, twin.batch) == (run.model, run.data, run.batch)


def test_every_part_is_inherited_by_a_run():
    inherited: set[str] = set()
    for path in (ROOT / "ds_configs").rglob("*.json"):
        parents = json.loads(path.read_text(encoding="utf-8")).get("inherits", [])
        inherited |= {str((path.parent / parent).resolve().relative_to(ROOT)) for parent in parents}
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "ds_configs/parts").rglob("*.json")} <= inherited
