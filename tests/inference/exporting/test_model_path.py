"""What a path on the command line is taken for, and what is said when it is nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.exporting.model_path import find_model, load_run_config
from tests.training.checkpoint_files import write_checkpoint
from training.checkpoints.find_and_verify import CheckpointError


def test_a_path_is_a_run_a_checkpoint_or_a_folder(tmp_path: Path) -> None:
    run, folder = tmp_path / "runs" / "a", tmp_path / "hf"
    checkpoint = write_checkpoint(run, 5)
    folder.mkdir()
    (run / "config.json").write_text('{"model": {}}', encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    assert find_model(run).kind == "run"
    assert find_model(checkpoint).kind == "checkpoint"
    assert find_model(checkpoint).run == run.resolve()
    assert find_model(folder).kind == "folder"


def test_a_misspelt_run_is_told_what_runs_there_are(tmp_path: Path) -> None:
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "config.json").write_text('{"model": {}}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"quickstrat: no such folder. Runs in .*: quickstart\."):
        find_model(tmp_path / "quickstrat")


def test_a_configuration_file_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "quickstart.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"is a file\. Name the folder of the run instead, runs/quickstart"):
        find_model(tmp_path / "quickstart.json")


def test_a_folder_without_a_model_is_neither(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither a run .* nor a Hugging Face folder"):
        find_model(tmp_path)


def test_a_run_without_its_configuration_is_told_so(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 5)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_run_config(tmp_path)
