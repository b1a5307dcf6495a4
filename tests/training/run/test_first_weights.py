"""A run that starts from a Hugging Face folder: what it says about the folder, and that it goes on without it."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

import ds_configs
from data.config import TokenizerConfig
from data.tokenizers import trainers
from inference.exporting.model_path import load_run_config
from model.gpt import GPT
from model.hugging_face.conversion import to_folder
from tests import processes
from tests.tiny_models import tiny
from training.config import resolve
from training.preflight import compare_tokenizers
from training.run_folder.lock import hold
from training.run_folder.progress import remove_unused

MODEL = tiny("gpt2", vocab_size=320, max_seq_length=32, hidden_size=32, intermediate_size=48, norm_eps=1e-3)


def train(text: str, folder: Path) -> str:
    trainers.train([text], TokenizerConfig(kind="byte_bpe", vocab_size=300), folder)
    return str(folder)


def test_a_tokenizer_that_does_not_fit_the_folders_is_said(verse, tmp_path):
    text = verse.read_text(encoding="utf-8")
    ours, same, other = train(text, tmp_path / "a"), train(text, tmp_path / "b"), train(text[::-1], tmp_path / "c")
    assert compare_tokenizers(same, ours) == []
    (line,) = compare_tokenizers(other, ours)
    assert line.startswith(f"{other}: its tokenizer is not the store's. ")
    assert " of 300 ids stand for something else there" in line
    assert "\n" not in line
    (tmp_path / "none").mkdir()
    (line,) = compare_tokenizers(str(tmp_path / "none"), ours)
    assert line.startswith(f"{tmp_path / 'none'}: its tokenizer could not be compared with the store's: ")


def test_a_folder_that_does_not_fit_is_refused_before_the_data_is_prepared(root, verse, tmp_path):
    to_folder(GPT(MODEL, seed=5), MODEL, tmp_path / "start", "gpt2")
    start = json.dumps({"method": "folder", "folder": str(tmp_path / "start")})
    own = [f"data.path={verse}", f"data.directory={tmp_path / 'stores'}", f"run.directory={tmp_path / 'runs'}", "run.name=x"]
    command = [sys.executable, "run_pretrain.sh", "ds_configs/own_text.json", *own, f"model.initialize={start}"]
    done = processes.run(command, cwd=root)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "norm_eps = 0.001 (model.norm_eps = 1e-05)" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["start"]


def test_a_refused_run_takes_its_folder_away_only_if_nothing_is_in_it(tmp_path):
    held = [hold(tmp_path / "runs" / name) for name in ("new", "used")]
    (tmp_path / "runs" / "used" / "log.txt").touch()
    for name in ("new", "used", "missing"):
        remove_unused(tmp_path / "runs" / name)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["used"]
    for descriptor in held:
        assert descriptor is not None
        os.close(descriptor)


@pytest.mark.distributed
def test_a_run_takes_its_model_from_a_folder_and_goes_on_when_the_folder_is_gone(make_run, verse, tmp_path):
    to_folder(GPT(MODEL, seed=5), MODEL, tmp_path / "start", "gpt2")
    train(verse.read_text(encoding="utf-8")[::-1], tmp_path / "start")
    run = make_run(model={"from": str(tmp_path / "start")}, pipeline__stages=1, training__sample_tokens=0, training__save_interval_steps=1)
    output = run.run("training.steps=2", ranks=1)
    assert output.count("its tokenizer is not the store's") == 1
    assert output.count("scheduler.params.warmup_num_steps = 3 and the run has 2 steps") == 1
    assert (run.folder / "log.txt").read_text(encoding="utf-8").count("its tokenizer is not the store's") == 1

    recorded = json.loads((run.folder / "config.json").read_text(encoding="utf-8"))["model"]
    assert recorded["from"] == str(tmp_path / "start")
    assert recorded["norm_eps"] == 1e-3
    assert recorded["initialize"] == {"method": "folder", "folder": str(tmp_path / "start")}

    shutil.rmtree(tmp_path / "start")
    output = run.run("training.steps=3", ranks=1)
    assert "resuming" in output
    assert "from step 2" in output
    assert "its tokenizer" not in output
    assert sorted(run.curve()) == [1, 2, 3]
    assert load_run_config(run.folder)[1] == resolve(ds_configs.load(run.config)).model
    # Another run still needs it.
    with pytest.raises(ds_configs.ConfigError, match=r"model\.from: .*start: no such folder"):
        resolve(ds_configs.load(run.config, ["run.name=another"]))
