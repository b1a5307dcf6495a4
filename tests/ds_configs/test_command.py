"""`python -m ds_configs show|diff|check`."""

import json
import re
import subprocess
import sys

import pytest

from ds_configs.__main__ import main
from tests import ROOT

QUICKSTART = "ds_configs/quickstart.json"

pytestmark = pytest.mark.usefixtures("at_the_root")


def test_show_names_the_source_file_of_each_value(capsys):
    assert main(["show", "ds_configs/ablations/quickstart_untied.json", "optimizer.params.lr=1e-4", "run.name=x"]) == 0
    lines = {line.split(" = ")[0]: line.split() for line in capsys.readouterr().out.splitlines()}

    assert lines["model.tie_embeddings"][2:] == ["false", "ds_configs/ablations/quickstart_untied.json:4"]
    assert lines["training.steps"][-1].startswith("ds_configs/quickstart.json:")
    assert lines["zero_optimization.stage"][2:] == ["1", "ds_configs/parts/engine/pipeline.json:4"]
    assert lines["optimizer.params.lr"][2:] == ["0.0001", "command", "line"]


def test_diff_shows_what_an_ablation_changes_and_nothing_else(capsys):
    assert main(["diff", "ds_configs/quickstart.json", "ds_configs/ablations/quickstart_half_lr.json"]) == 0
    lines = [line.rpartition(":")[0].split() for line in capsys.readouterr().out.splitlines()]

    assert lines == [
        ["-", "optimizer.params.adam_lr", "=", "0.002", "ds_configs/quickstart.json"],
        ["+", "optimizer.params.adam_lr", "=", "0.001", "ds_configs/ablations/quickstart_half_lr.json"],
        ["-", "optimizer.params.muon_lr", "=", "0.006", "ds_configs/quickstart.json"],
        ["+", "optimizer.params.muon_lr", "=", "0.003", "ds_configs/ablations/quickstart_half_lr.json"],
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


@pytest.mark.parametrize("command", ["show", "check"])
def test_without_torch_the_commands_work_and_say_what_they_cannot_tell(command):
    code = f"import sys; sys.modules['torch'] = None; from ds_configs.__main__ import main; sys.exit(main(['{command}', '{QUICKSTART}']))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "decided when the run starts: torch, which could tell, is not installed" in done.stdout


def test_what_auto_will_be_here_is_said_with_both_figures(capsys):
    for command in ("show", "check"):
        assert main([command, "ds_configs/quickstart.json"]) == 0
        assert re.search(
            r"here:? (bf16|fp32), because 256 x 256 products run at [\d.]+ GFLOP/s in bf16 and [\d.]+ in fp32", capsys.readouterr().out
        )
    assert main(["check", "ds_configs/quickstart.json", "bf16.enabled=false"]) == 0
    assert "bf16.enabled = false, here fp32, as bf16.enabled says" in capsys.readouterr().out


def test_a_word_that_is_not_auto_is_refused(capsys):
    assert main(["check", "ds_configs/quickstart.json", "bf16.enabled=Auto"]) == 2
    assert 'bf16.enabled = "Auto"' in capsys.readouterr().err


def test_the_parts_of_a_check_import_no_framework():
    code = (
        "import sys, ds_configs; from training.config import resolve; resolve(ds_configs.read('ds_configs/quickstart.json')); "
        "sys.exit(bool({'torch', 'deepspeed', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
