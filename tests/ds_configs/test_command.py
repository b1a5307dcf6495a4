import json
import subprocess
import sys
from pathlib import Path

import pytest

from ds_configs.__main__ import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_show_names_the_source_file_of_each_value(capsys):
    assert main(["show", "ds_configs/ablations/quickstart_untied.json", "optimizer.params.lr=1e-4", "run.name=x"]) == 0
    lines = {line.split(" = ")[0]: line.split() for line in capsys.readouterr().out.splitlines()}

    assert lines["model.tie_embeddings"][2:] == ["false", "ds_configs/ablations/quickstart_untied.json:4"]
    assert lines["training.steps"][-1].startswith("ds_configs/quickstart.json:")
    assert lines["zero_optimization.stage"][2:] == ["1", "ds_configs/parts/engine/pipeline.json:4"]
    assert lines["optimizer.params.lr"][2:] == ["0.0001", "command", "line"]


def test_diff_shows_what_an_ablation_changes_and_nothing_else(capsys):
    assert main(["diff", "ds_configs/quickstart.json", "ds_configs/ablations/quickstart_lr_1e-3.json"]) == 0
    lines = [line.rpartition(":")[0].split() for line in capsys.readouterr().out.splitlines()]

    assert lines == [
        ["-", "optimizer.params.lr", "=", "0.002", "ds_configs/quickstart.json"],
        ["+", "optimizer.params.lr", "=", "0.001", "ds_configs/ablations/quickstart_lr_1e-3.json"],
    ]


def test_diff_of_a_run_with_itself_says_so(capsys):
    assert main(["diff", "ds_configs/quickstart.json", "ds_configs/quickstart.json"]) == 0
    assert "no difference" in capsys.readouterr().out


def test_check_prints_parameters_tokens_per_step_and_stages(capsys):
    assert main(["check", "ds_configs/hongloumeng_500m.json"]) == 0
    out = capsys.readouterr().out

    assert "499,750,560 parameters" in out
    assert "768 rows = micro-batch 1 x 24 x 32 (32 pipelines): 1,572,864 tokens per step" in out
    assert "192 = 6 stages x 32" in out
    assert [line.split()[0] for line in out.splitlines() if line.startswith("        ")] == ["0", "1", "2", "3", "4", "5"]


def test_check_goes_on_after_a_wrong_file_and_ends_with_exit_code_2(capsys, tmp_path):
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"inherits": [str(ROOT / "ds_configs/quickstart.json")], "model": {"num_head": 3}}), encoding="utf-8")
    assert main(["check", str(wrong), "ds_configs/quickstart.json", "training.steps=3"]) == 2

    captured = capsys.readouterr()
    assert 'unknown key "model.num_head". Did you mean "num_heads"?' in captured.err
    assert "1 of 2 configurations are wrong." in captured.err
    assert "3 steps" in captured.out


def test_check_without_a_file_and_show_of_a_missing_one_are_one_line_and_exit_code_2(capsys):
    assert main(["check", "training.steps=3"]) == 2
    assert main(["show", "ds_configs/quikstart.json"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "check: name at least one configuration file.",
        "ds_configs/quikstart.json: no such file. Did you mean ds_configs/quickstart.json?",
    ]


def test_the_commands_need_neither_torch_nor_deepspeed():
    code = (
        "import sys; from ds_configs.__main__ import main; code = main(['check', 'ds_configs/quickstart.json']); "
        "sys.exit(code or bool({'torch', 'deepspeed', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
