"""lm-evaluation-harness asks our engine: what it reports is what the model's probabilities say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from data.tokenizers import tokenizer_folder
from inference.evaluate import main

QUESTIONS = [
    {"question": "白日依山尽，", "choices": ["黄河入海流", "疑是地上霜", "低头思故乡"], "answer": 0},
    {"question": "床前明月光，", "choices": ["更上一层楼", "疑是地上霜"], "answer": 1},
    {"question": "欲穷千里目，", "choices": ["低头思故乡", "更上一层楼"], "answer": 1},
]


def by_hand(folder: Path) -> float:
    """Accuracy by plain `transformers`, one sequence at a time."""
    model, ours = AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer_folder.load(folder)
    right = 0
    for one in QUESTIONS:
        context, scores = ours.encode(str(one["question"])), []
        for choice in one["choices"]:  # type: ignore[attr-defined]
            rest = ours.encode(choice)
            with torch.no_grad():
                logits = model(torch.tensor([context + rest])).logits[0].log_softmax(-1)
            scores.append(sum(float(logits[len(context) + place - 1, token]) for place, token in enumerate(rest)))
        right += scores.index(max(scores)) == one["answer"]
    return right / len(QUESTIONS)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "verse.jsonl"
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in QUESTIONS), encoding="utf-8")
    return path


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed (requirements-lm-eval.txt)")
def test_a_local_task_is_scored_as_by_hand(
    folder: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    assert main([str(folder), "--tasks", str(task), "--batch-size", "2", "--output", str(tmp_path / "out.json")]) == 0, capsys.readouterr()
    (section,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["sections"]
    assert section["tasks"]["verse"]["acc"] == pytest.approx(by_hand(folder))


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm_eval is installed")
def test_without_the_package_the_command_says_how_to_get_it(folder: Path, task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "--tasks", str(task)]) == 2
    assert "pip install -r requirements-lm-eval.txt" in capsys.readouterr().err.strip().splitlines()[-1]
