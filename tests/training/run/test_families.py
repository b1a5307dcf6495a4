"""Every shipped run, made small, trains on two stages as a plain loop trains it; models that start from others start as they."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import ds_configs
from data.batches.datasets import open_datasets
from data.prepare import prepare
from model.config import InitializeConfig, ModelConfig
from model.gpt import GPT
from model.hardware.precision import choose_precision
from model.hugging_face import conversion
from model.layers.cross_entropy import loss
from tests.conftest import LINES
from tests.tiny_models import tiny
from tests.training.checkpoint_files import tied_master
from tests.training.conftest import train_many
from tests.training.plain_loop import train_plainly
from training.config import RunConfig, resolve, with_precision

pytestmark = pytest.mark.distributed

STEPS = 20
VOCABULARY = 320
FROM_A_FOLDER = ("opt_125m_pretrained", "opt_125m_depth_down_10", "opt_125m_depth_up_16")
TIED = ("poetry_gpt2_26m", "quickstart_rotary", "opt_125m_scratch", *FROM_A_FOLDER)

# What is made smaller. The rest is the shipped file's: norms, positions, biases, tying, activation, checkpointing, depth maps.
SIZES: dict[str, dict[str, Any]] = {
    # Heads of 54 as in the full model.
    "hongloumeng_500m": {
        "vocab_size": VOCABULARY,
        "max_seq_length": 32,
        "num_layers": 3,
        "hidden_size": 108,
        "num_heads": 2,
        "dropout": 0.0,
    },
    "toy_reverse": {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 96},
    "scifi_llama_104m": {
        "vocab_size": 512,
        "max_seq_length": 32,
        "num_layers": 3,
        "hidden_size": 48,
        "num_heads": 4,
        "intermediate_size": 144,
    },
    # Eight heads share a key, as in the full model.
    "tinyllama_zh_1b": {
        "vocab_size": VOCABULARY,
        "max_seq_length": 32,
        "num_layers": 3,
        "hidden_size": 64,
        "num_heads": 8,
        "num_kv_heads": 1,
        "intermediate_size": 176,
    },
    "poetry_gpt2_26m": {"vocab_size": 200, "max_seq_length": 32, "num_layers": 3, "hidden_size": 48, "num_heads": 4},
    "opt_125m_scratch": {"vocab_size": VOCABULARY, "max_seq_length": 32, "hidden_size": 32, "num_heads": 4, "intermediate_size": 128},
}
SIZES |= dict.fromkeys(FROM_A_FOLDER, SIZES["opt_125m_scratch"])
# Mixtures: a Llama with learned positions, a GPT-2 with rotary ones.
SIZES["scifi_llama_104m_learned"] = SIZES["scifi_llama_104m"]
SIZES["quickstart_rotary"] = {"vocab_size": VOCABULARY, "max_seq_length": 32, "num_layers": 2, "hidden_size": 48}


class Families:
    """The small runs and the folders that some of them start from."""

    def __init__(self, folder: Path, root: Path, verse: Path) -> None:
        self.folder, self.root, self.verse = folder, root, verse
        self.precision = choose_precision("auto", "cpu")

    def write(self, name: str, data: dict[str, Any], start: Path | None = None) -> RunConfig:
        """Write `<name>.json`, which inherits the shipped file, and prepare its data."""
        (parent,) = (self.root / "ds_configs").rglob(f"{name}.json")
        shipped = ds_configs.load(parent).values
        lengths = dict.fromkeys({"epochs", "tokens"} & shipped["training"].keys())
        # Text of our own, so nothing of how the shipped file finds and cleans its text stays.
        unused = dict.fromkeys(shipped["data"].keys() - {"corpus", "chapters", "validation", "tokenizer", "windows", "clean"})
        values = {
            "inherits": [str(parent)],
            "run": {"directory": str(self.folder / "runs")},
            "train_batch_size": 8,
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": 4,
            "bf16": {"enabled": self.precision.bf16},
            "optimizer": {"params": {"lr": 3e-3}},
            "scheduler": {"params": {"warmup_num_steps": 3}},
            "pipeline": {"stages": 2},
            "tensorboard": {"enabled": False},
            "model": SIZES[name] | ({"initialize": {"folder": str(start)}} if start else {}),
            "data": {**unused, "seq_length": 24, "directory": str(self.folder / "stores"), **data},
            "training": {**lengths, "steps": STEPS, "log_interval_steps": 1, "eval_interval_steps": 100, "sample_tokens": 0},
        }
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(values), encoding="utf-8")
        config = resolve(ds_configs.load(path))
        self.stores = prepare(config.data)
        return config

    def config(self, name: str) -> RunConfig:
        """The run, in the precision it was trained in: bf16 where this machine is made for it."""
        return with_precision(resolve(ds_configs.load(self.folder / f"{name}.json")), self.precision.bf16)

    def curve(self, name: str) -> list[dict[str, float]]:
        """The records of all steps."""
        lines = (self.folder / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [record for record in map(json.loads, lines) if "train/loss" in record]

    def start_of(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The weights and the fp32 masters of both stages before the first step, under the plain model's names."""
        both: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = ({}, {})
        for stage in (0, 1):
            for found, stored in zip(both, torch.load(self.folder / "runs" / name / f"start-{stage}.pt"), strict=True):
                for key, weight in stored.items():
                    plain = key.replace("tied_modules.embedding.", "0.")
                    assert plain not in found or torch.equal(found[plain], weight), "tied weights start equal"
                    found[plain] = weight
        return both

    def trained_opt(self) -> Path:
        """A Hugging Face folder of the 12-layer OPT after some training."""
        if not (self.folder / "opt").exists():
            trained = train_plainly(self.config("opt_125m_scratch"), [3e-3] * 50)
            conversion.to_folder(trained.model, trained.model.config, self.folder / "opt", "opt")
        return self.folder / "opt"


def write_poems(folder: Path) -> Path:
    """Sixty quatrains in the collection's own form."""
    draw = random.Random(0)
    poems = [{"author": "佚名", "title": draw.choice(LINES), "paragraphs": ["，".join(draw.sample(LINES, 4)) + "。"]} for _ in range(60)]
    folder.mkdir()
    (folder / "poet.tang.0.json").write_text(json.dumps(poems, ensure_ascii=False), encoding="utf-8")
    return folder


def write_llama(folder: Path) -> Path:
    """TinyLlama's shape with another vocabulary than the run's: its embedding and head cannot be used."""
    sizes = {**SIZES["tinyllama_zh_1b"], "vocab_size": 97}
    config = tiny("llama", **sizes)
    conversion.to_folder(GPT(config, seed=3), config, folder, "llama")
    return folder


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory, root: Path, verse: Path) -> Families:
    """All runs, trained."""
    made = Families(tmp_path_factory.mktemp("families"), root, verse)
    # A text of two dozen lines repeats itself, which the default rules would not let pass.
    own = {"path": str(verse), "clean": []}
    novel = {"chapters": {"last": 20}, "validation": {"last_documents": 2}, "tokenizer": {"vocab_size": VOCABULARY}}
    made.write("hongloumeng_500m", {**own, **novel})
    existing = {**own, "tokenizer": {"path": str(made.stores / "tokenizer")}}
    made.write("quickstart_rotary", {**own, **novel})
    made.write("toy_reverse", {"reverse": {"num_samples": 2000}})
    for name in ("scifi_llama_104m", "scifi_llama_104m_learned"):
        made.write(name, {**own, "tokenizer": {"vocab_size": 512}})
    made.write("poetry_gpt2_26m", {"path": str(write_poems(made.folder / "poems")), "tokenizer": {"vocab_size": 200}})
    cut = {"validation": {"last_shards": None, "max_tokens": None, "ratio": 0.1}}
    made.write("tinyllama_zh_1b", {**existing, **cut}, start=write_llama(made.folder / "llama"))
    made.write("opt_125m_scratch", existing)
    for name in FROM_A_FOLDER:
        made.write(name, existing, start=made.trained_opt())
    train_many([{"config": str(made.folder / f"{name}.json"), "world": 2} for name in SIZES])
    return made


@pytest.mark.parametrize("name", SIZES)
def test_a_run_of_the_family_trains_on_two_stages_as_a_plain_loop_does(families, name):
    records = families.curve(name)
    losses = [record["train/loss"] for record in records]
    assert len(losses) == STEPS
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.02, losses

    plain = train_plainly(families.config(name), [record["optim/lr"] for record in records])
    # bf16 has eight bits; after some steps two ways of summing the same gradients may round a weight differently.
    assert losses == pytest.approx(plain.losses, abs=2e-3)


@pytest.mark.parametrize("name", TIED)
def test_tied_weights_are_the_same_on_both_stages_to_the_end(families, name):
    assert families.config(name).model.tie_embeddings
    checkpoint = families.folder / "runs" / name / f"checkpoints/step{STEPS:08d}"
    first, last = (tied_master(checkpoint, stage) for stage in (0, 1))
    assert torch.equal(first, last)
    assert not torch.equal(first.view(-1), families.start_of(name)[1]["0.weight"].view(-1)), "they were trained"


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("opt_125m_pretrained", range(12)),
        ("opt_125m_depth_down_10", [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]),
        ("opt_125m_depth_up_16", [*range(8), *range(4, 12)]),
    ],
)
def test_a_run_starts_from_exactly_the_layers_its_file_names(families, name, layers):
    _, source = conversion.from_folder(families.trained_opt())
    theirs = source.state_dict()
    weights, masters = families.start_of(name)
    model = families.config(name).model
    assert len(layers) == model.num_layers
    wanted = {}
    for key in masters:
        index, _, parameter = key.partition(".")
        block, half = divmod(int(index) - 2, 2)
        if 0 <= block < model.num_layers:
            wanted[key] = theirs[f"{2 + 2 * layers[block] + half}.{parameter}"]
        else:
            # Embeddings are in front; the final norm moves with the depth.
            wanted[key] = theirs[key if int(index) < 2 else f"{int(index) + 2 * (12 - model.num_layers)}.{parameter}"]
    assert masters.keys() == GPT(model).state_dict().keys()
    assert all(torch.equal(masters[key], weight) for key, weight in wanted.items())
    assert all(torch.equal(weights[key], weight.to(families.precision.dtype)) for key, weight in wanted.items())


def test_a_replaced_vocabulary_leaves_the_layers_and_draws_embedding_and_head_anew(families):
    _, source = conversion.from_folder(families.folder / "llama")
    theirs = source.state_dict()
    _, masters = families.start_of("tinyllama_zh_1b")
    head = f"{max(int(key.partition('.')[0]) for key in masters)}.weight"
    fresh = {"0.weight", head}
    assert all(torch.equal(masters[key], theirs[key]) for key in masters.keys() - fresh)
    config = families.config("tinyllama_zh_1b")
    drawn = GPT(dataclasses.replace(config.model, initialize=InitializeConfig()), seed=config.run.seed).state_dict()
    assert all(torch.equal(masters[key], drawn[key]) for key in fresh)
    assert masters["0.weight"].shape[0] == VOCABULARY != theirs["0.weight"].shape[0]


def held_out_loss(config: RunConfig, model: ModelConfig) -> float:
    """Nats per position of the validation split under a model's first weights."""
    plain = GPT(model, seed=config.run.seed).eval()
    batches = open_datasets(config.data, seed=config.run.seed).valid.batches(replica=0, num_replicas=1, micro_batch=8)
    with torch.no_grad():
        losses = [loss(plain(inputs), labels).item() for inputs, labels in batches]
    return sum(losses) / len(losses)


def test_a_deeper_model_is_closer_to_the_one_it_was_grown_from_than_to_a_random_one(families):
    config = families.config("opt_125m_depth_up_16")
    scratch = InitializeConfig()
    trained = held_out_loss(config, families.config("opt_125m_pretrained").model)
    grown = held_out_loss(config, config.model)
    fresh = held_out_loss(config, dataclasses.replace(config.model, initialize=scratch))
    cut = held_out_loss(config, families.config("opt_125m_depth_down_10").model)
    assert trained < fresh - 1
    assert abs(grown - trained) < 0.1 * abs(grown - fresh)
    assert abs(cut - trained) < 0.1 * abs(cut - fresh)
