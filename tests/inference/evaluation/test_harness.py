"""lm-evaluation-harness asks our engine: what it reports is what the model's probabilities say."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from data.documents import DataError
from data.tokenizers import tokenizer_folder
from inference.evaluate import main
from inference.evaluation.questions import check_questions
from inference.generation.settings import SamplingParams
from inference.generation.writing import generate
from tests import ROOT, processes

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed (requirements-lm-eval.txt)"
)

QUESTIONS: list[dict[str, Any]] = [
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
        for choice in one["choices"]:
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


def evaluate(folder: Path, *arguments: str | Path, **environment: str) -> tuple[int, str, str]:
    """The command as a process, because datasets and hub read their settings once: exit code, table, last line of the log."""
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **environment}
    command = [sys.executable, "-m", "inference.evaluate", str(folder), *map(str, arguments)]
    done = processes.run(command, cwd=folder.parent, env={**settings, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.parent / "hf")})
    return done.returncode, done.stdout, done.stderr.strip().splitlines()[-1]


@needs_harness
def test_a_local_task_is_scored_as_by_hand(
    folder: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    assert main([str(folder), "--tasks", str(task), "--batch-size", "2", "--output", str(tmp_path / "out.json")]) == 0, capsys.readouterr()
    (section,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["sections"]
    assert section["tasks"]["verse"]["acc"] == pytest.approx(by_hand(folder))
    assert section["tasks"]["verse"]["questions"] == len(QUESTIONS)
    assert section["cut_contexts"] == 0


@needs_harness
def test_a_list_is_as_good_as_lines_and_what_does_not_fit_is_counted(folder: Path, tmp_path: Path) -> None:
    long = [{**one, "question": "春眠不觉晓，" * 40} for one in QUESTIONS]
    (tmp_path / "verse.json").write_text(json.dumps([*QUESTIONS, *long], ensure_ascii=False), encoding="utf-8")
    code, table, _ = evaluate(folder, "--tasks", tmp_path / "verse.json", "--output", tmp_path / "out.json")
    assert code == 0
    (section,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["sections"]
    assert section["tasks"]["verse"]["questions"] == len(QUESTIONS) + len(long)
    assert section["cut_contexts"] == sum(len(one["choices"]) for one in long)
    assert "| verse | 6 |" in table


@needs_harness
def test_a_text_that_is_to_be_written_is_cut_to_its_room_and_counted(folder: Path) -> None:
    from inference.evaluation.harness import _Model
    from inference.generation.engine import load_engine

    model = _Model(load_engine(folder), batch_size=1)
    model._write(0, "春眠不觉晓", {"max_gen_toks": 8})
    assert model.cut_contexts == 0
    model._write(0, "春眠不觉晓，" * 40, {"max_gen_toks": 8})
    assert model.cut_contexts == 1


@needs_harness
def test_a_text_is_drawn_as_the_task_has_it(folder: Path) -> None:
    from inference.evaluation.harness import _Model
    from inference.generation.engine import load_engine

    engine = load_engine(folder)
    model, prompt = _Model(engine, batch_size=1), engine.tokenizer.encode("春眠")

    def written(**settings: Any) -> list[str]:
        requests = [types.SimpleNamespace(args=("春眠", {"max_new_tokens": 12, **settings}))] * 3
        return model.generate_until(requests)

    def expected(seed: int, **settings: Any) -> str:
        return generate(engine, [prompt], SamplingParams(new_tokens=12, seed=seed, **settings))[0].text

    assert written() == written(do_sample=False, temperature=1) == [expected(0, temperature=0)] * 3
    assert written(do_sample=True) == [expected(seed, temperature=1.0, top_p=1.0) for seed in range(3)]
    drawn = written(do_sample=True, temperature=1.5, top_p=0.9, top_k=None, until=["\x00", ""])
    assert drawn == [expected(seed, temperature=1.5, top_p=0.9, stop=("\x00",)) for seed in range(3)]
    assert len(set(written(temperature=5.0))) == 3


@needs_harness
def test_cmmlu_is_asked_where_its_data_is_and_its_absence_is_one_line(folder: Path) -> None:
    subject = ("--tasks", "cmmlu_chinese_literature")
    code, table, last = evaluate(folder, *subject)
    assert (code, table) == (2, "")
    assert last.startswith("inference.evaluate: task cmmlu_chinese_literature: its data is not here (Couldn't reach 'haonan-li/cmmlu'")
    assert last.endswith("docs/evaluation.md says where to put it.")
    data = folder.parent / "haonan-li/cmmlu"
    data.mkdir(parents=True)
    rows = "Question,A,B,C,D,Answer\n" + "欲穷千里目，下一句是,更上一层楼,低头思故乡,疑是地上霜,黄河入海流,A\n" * 3
    for split in ("test", "dev"):
        (data / f"{split}.csv").write_text(rows, encoding="utf-8")
    files = "".join(f"  - split: {split}\n    path: {split}.csv\n" for split in ("test", "dev"))
    (data / "README.md").write_text(f"---\nconfigs:\n- config_name: chinese_literature\n  data_files:\n{files}---\n", encoding="utf-8")
    code, table, last = evaluate(folder, *subject)
    assert code == 0, last
    assert "| cmmlu_chinese_literature | 3 |" in table


@needs_harness
def test_a_misspelt_benchmark_is_told_those_there_are(folder: Path) -> None:
    code, _, last = evaluate(folder, "--tasks", "cmlu")
    assert code == 2
    assert 'task cmlu: lm-evaluation-harness has none of this name. Did you mean "cmmlu"?' in last


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm_eval is installed")
def test_without_the_package_the_command_says_how_to_get_it(folder: Path, task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "--tasks", str(task)]) == 2
    assert "pip install -r requirements-lm-eval.txt" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no questions"),
        ("{", "unreadable"),
        ('{"question": "白日", "choices": ["依山尽", "入海流"], "answer": 2}', r'question 1: "answer" = 2 is none of its 2 choices'),
        ('{"question": "白日", "choices": ["依山尽"], "answer": 0}', 'question 1: "choices" must be two or more texts'),
        ('{"question": "白", "choices": ["日", "月"], "answer": 0}\n{"prompt": "白"}', 'question 2: has no "question"'),
    ],
)
def test_a_file_that_holds_something_else_is_told_where(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "verse.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=rf"verse\.jsonl: {message}"):
        check_questions(tmp_path / "verse.jsonl")
