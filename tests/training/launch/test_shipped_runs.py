"""Every shipped configuration through `./run_pretrain.sh` itself: from raw files to the first step, with the workers it ships with.

Each runs in a checkout of its own, with files where the configuration looks for them. Only sizes are made smaller: of the model,
the batch, and the shards, so that a few megabytes are several parts.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import ds_configs
from data.config import TokenizerConfig
from data.tokenizers import trainers
from model.gpt import GPT
from model.hugging_face import conversion
from tests import ROOT, processes
from tests.tiny_models import tiny

pytestmark = pytest.mark.distributed

PACKAGES = ("data", "ds_configs", "inference", "model", "training")


def text(seed: int, paragraphs: int) -> list[str]:
    """Paragraphs of some 400 bytes in which nothing repeats, so that the cleaning rules let them pass."""
    draw = random.Random(seed)
    return ["".join(chr(draw.randrange(0x4E00, 0x5200)) for _ in range(130)) + "。" for _ in range(paragraphs)]


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_novel(checkout: Path) -> None:
    """The novel as an earlier start fetched it; without it the run fetches it."""
    fetched = ROOT / "data/downloads/hongloumeng.txt"
    if fetched.is_file():
        (checkout / "data/downloads").mkdir(exist_ok=True)
        shutil.copy(fetched, checkout / "data/downloads")


def write_own_text(checkout: Path) -> None:
    write_lines(checkout / "my_text.txt", text(1, 700))


def write_novels(checkout: Path) -> None:
    for number in range(3):
        write_lines(checkout / f"data/downloads/novels/{number}.txt", text(number, 2800))


def write_poems(checkout: Path) -> None:
    folder = checkout / "poems"
    folder.mkdir()
    for number in range(3):
        lines = text(number, 2600)
        poems = [{"author": "佚名", "title": f"其{index}", "paragraphs": [line]} for index, line in enumerate(lines)]
        (folder / f"poet.tang.{1000 * number}.json").write_text(json.dumps(poems, ensure_ascii=False), encoding="utf-8")


def write_web(checkout: Path) -> None:
    downloads = checkout / "data/downloads"
    for number in range(3):
        records = [json.dumps({"content": line}, ensure_ascii=False) for line in text(number, 2800)]
        write_lines(downloads / f"wudao/{number}.json", ["[", ",\n".join(records), "]"])
    import sentencepiece

    write_lines(checkout / "sample.txt", text(1, 200))
    (downloads / "chatglm3").mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(checkout / "sample.txt"),
        model_prefix=str(downloads / "chatglm3/tokenizer"),
        vocab_size=1400,
        byte_fallback=True,
        model_type="bpe",
        minloglevel=2,
    )
    sizes = {"vocab_size": 97, "max_seq_length": 32, "num_layers": 2, "hidden_size": 32, "num_heads": 4}
    config = tiny("llama", **sizes, num_kv_heads=1, intermediate_size=64)
    conversion.to_folder(GPT(config, seed=3), config, downloads / "tinyllama-1.1b", "llama")


def write_mixture(checkout: Path) -> None:
    downloads = checkout / "data/downloads"
    for number in range(3):
        write_lines(
            downloads / f"mixed_web/{number}.jsonl",
            [json.dumps({"text": line}, ensure_ascii=False) for line in text(number, 2800)],
        )
    write_lines(downloads / "python/deep/tool.py", ["def double(number):", "    return 2 * number"])
    trainers.train(text(1, 50), TokenizerConfig(kind="byte_bpe", vocab_size=320), downloads / "opt-125m")
    config = tiny("opt", vocab_size=320, max_seq_length=32, num_layers=12, hidden_size=32, num_heads=4, intermediate_size=64)
    conversion.to_folder(GPT(config, seed=3), config, downloads / "opt-125m", "opt")


@dataclass(frozen=True)
class Case:
    """The raw files of some configurations, and what is made smaller."""

    write: Callable[[Path], None]
    model: dict[str, int]
    data: dict[str, object]


SMALL = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "max_seq_length": 32}
GATED = {**SMALL, "intermediate_size": 64}
NOVEL = Case(write_novel, SMALL, {})
NOVELS = Case(write_novels, GATED, {"shard_mib": 1})
MIXTURE = Case(write_mixture, {**SMALL, "intermediate_size": 64, "num_layers": 12, "vocab_size": 320}, {"shard_mib": 1})
# By the name of the run; an ablation's name begins with the run's.
CASES = {
    "quickstart": NOVEL,
    "own_text": Case(write_own_text, SMALL, {}),
    "poetry_gpt2_26m": Case(write_poems, SMALL, {"shard_mib": 1, "path": "poems"}),
    "scifi_llama_104m": NOVELS,
    "toy_reverse": Case(lambda checkout: None, GATED, {}),
    "tinyllama_zh_1b": Case(write_web, {**GATED, "num_kv_heads": 1}, {"shard_mib": 1}),
    "hongloumeng_500m": NOVEL,
    "opt_125m_scratch": MIXTURE,
    "opt_125m_pretrained": MIXTURE,
    "opt_125m_depth_down_10": Case(write_mixture, {**MIXTURE.model, "num_layers": 10}, MIXTURE.data),
    "opt_125m_depth_up_16": Case(write_mixture, {**MIXTURE.model, "num_layers": 16}, MIXTURE.data),
}
SHIPPED = {path.stem: path.relative_to(ROOT) for path in ROOT.glob("ds_configs/**/*.json") if "parts" not in path.parts}


@pytest.fixture
def checkout(root, tmp_path):
    """The parts of the project that a run needs, without anything that an earlier one left behind."""
    if not (root / ".venv/bin/python").exists():
        pytest.skip("no .venv in the checkout; `make test` makes it")
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in PACKAGES:
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "downloads", "stores"))
    for name in ("run_pretrain.sh", "requirements.txt"):
        shutil.copy(root / name, folder / name)
    (folder / ".venv").symlink_to((root / ".venv").resolve())
    return folder


def start(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`./run_pretrain.sh` as from a shell."""
    names = ("RANK", "WORLD_SIZE", "DS_ACCELERATOR")
    shell = {name: value for name, value in os.environ.items() if name not in names} | {"OMP_NUM_THREADS": "1"}
    return processes.run(["./run_pretrain.sh", *arguments], cwd=checkout, env=shell)


def case_of(name: str) -> Case:
    return next(case for run, case in CASES.items() if name.startswith(run))


def overrides(name: str) -> list[str]:
    case, shipped = case_of(name), ds_configs.load(ROOT / SHIPPED[name]).values
    removed = [key for key in ("epochs", "tokens") if key in shipped["training"]]
    values = {
        "run.name": "small",
        "bf16.enabled": False,
        "pipeline.stages": 2,
        "train_batch_size": 2,
        "train_micro_batch_size_per_gpu": 1,
        "training.steps": 1,
        "training.eval_batches": 1,
        "training.sample_tokens": 0,
        "data.seq_length": 32,
        **{f"model.{key}": value for key, value in case.model.items()},
        **{f"data.{key}": value for key, value in case.data.items()},
        **{f"training.{key}": None for key in removed},
        **({"gradient_accumulation_steps": None} if "gradient_accumulation_steps" in shipped else {}),
    }
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


# One with several workers and parts is in every run of the tests; the novel may have to be fetched first.
ALWAYS = "poetry_gpt2_26m"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[*([] if name == ALWAYS else [pytest.mark.slow]), *([pytest.mark.network] if case_of(name) is NOVEL else [])]
        )
        for name in SHIPPED
    ],
)
def test_a_shipped_configuration_gets_from_raw_files_to_its_first_step(checkout, name):
    case_of(name).write(checkout)
    done = start(checkout, str(SHIPPED[name]), *overrides(name))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "runs/small is finished: step 1." in done.stdout
    assert "documents in" in done.stderr, "a person sees that something is done"
    (manifest,) = (checkout / "data/stores").glob("*/manifest.json")
    splits = json.loads(manifest.read_text(encoding="utf-8"))["splits"]
    num_shards = sum(len(part["shards"]) for part in splits["train"]["streams"])
    workers = ds_configs.load(ROOT / SHIPPED[name]).values["data"].get("num_workers", 1)
    assert num_shards > 1 or workers == 1, "what is not cut into parts proves nothing about workers"
