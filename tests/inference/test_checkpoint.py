"""Which checkpoint of a run is taken, and what is said when none can be."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import pytest

from inference.exporting.checkpoint import CheckpointError, choose, list_checkpoints, open_checkpoint
from inference.exporting.source import find_source, load_run_config


def save(run: Path, step: int, content: bytes = b"weights") -> Path:
    """A checkpoint with one file, in the layout of training."""
    folder = run / "checkpoints" / f"step{step:08d}"
    folder.mkdir(parents=True)
    (folder / "layer_00-model_states.pt").write_bytes(content)
    files = {"layer_00-model_states.pt": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    (folder / "manifest.json").write_text(json.dumps({"tag": folder.name, "step": step, "files": files}), encoding="utf-8")
    return folder


def test_the_newest_checkpoint_is_chosen(tmp_path: Path) -> None:
    for step in (90, 1000, 200):
        save(tmp_path, step)
    assert choose(tmp_path).tag == "step00001000"


def test_a_flipped_bit_costs_one_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 10)
    damaged = save(tmp_path, 20) / "layer_00-model_states.pt"
    damaged.write_bytes(b"wEights")
    with caplog.at_level(logging.WARNING):
        assert choose(tmp_path).step == 10
    assert f"{damaged}: is damaged" in caplog.text


def test_a_truncated_file_is_told_by_its_size(tmp_path: Path) -> None:
    (save(tmp_path, 20) / "layer_00-model_states.pt").write_bytes(b"wei")
    with pytest.raises(CheckpointError, match=r"has 3 bytes where the manifest says 7, and no other checkpoint"):
        choose(tmp_path)


def test_a_missing_file_is_damage(tmp_path: Path) -> None:
    (save(tmp_path, 20) / "layer_00-model_states.pt").unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        choose(tmp_path)


def test_an_interrupted_save_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (save(tmp_path, 20) / "manifest.json").unlink()
    assert choose(tmp_path).step == 10
    with pytest.raises(CheckpointError, match="never finished"):
        open_checkpoint(tmp_path / "checkpoints" / "step00000020")


@pytest.mark.parametrize("text", ["", "[]", '{"step": "1", "files": {}}', '{"step": 1, "files": {"a": {}}}', '{"step": 1, "files": []}'])
def test_a_torn_manifest_is_no_manifest(tmp_path: Path, text: str) -> None:
    save(tmp_path, 10)
    (save(tmp_path, 20) / "manifest.json").write_text(text, encoding="utf-8")
    assert choose(tmp_path).step == 10


def test_a_run_without_a_checkpoint_says_when_it_will_have_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"training": {"save_interval_steps": 500}}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"no finished checkpoint yet.*every 500 steps"):
        list_checkpoints(tmp_path)


def test_the_fingerprint_changes_with_any_file(tmp_path: Path) -> None:
    one, same, other = save(tmp_path / "a", 5), save(tmp_path / "b", 5), save(tmp_path / "c", 5, b"weightz")
    assert open_checkpoint(one).fingerprint == open_checkpoint(same).fingerprint != open_checkpoint(other).fingerprint


def test_a_path_is_a_run_a_checkpoint_or_a_folder(tmp_path: Path) -> None:
    run, folder = tmp_path / "runs" / "a", tmp_path / "hf"
    checkpoint = save(run, 5)
    folder.mkdir()
    (run / "config.json").write_text('{"model": {}}', encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    assert find_source(run).kind == "run"
    assert find_source(checkpoint).kind == "checkpoint"
    assert find_source(checkpoint).run == run.resolve()
    assert find_source(folder).kind == "folder"


def test_a_misspelt_run_is_told_what_runs_there_are(tmp_path: Path) -> None:
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "config.json").write_text('{"model": {}}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"quickstrat: no such folder. Runs in .*: quickstart\."):
        find_source(tmp_path / "quickstrat")


def test_a_configuration_file_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "quickstart.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"is a file\. Name the folder of the run instead, runs/quickstart"):
        find_source(tmp_path / "quickstart.json")


def test_a_folder_without_a_model_is_neither(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither a run .* nor a Hugging Face folder"):
        find_source(tmp_path)


def test_a_run_without_its_configuration_is_told_so(tmp_path: Path) -> None:
    save(tmp_path, 5)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_run_config(tmp_path)
