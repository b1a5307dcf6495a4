"""Which checkpoint of a run is taken, and what is said when none can be."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from tests.training.checkpoint_files import write_checkpoint
from training.checkpoints import find_and_verify
from training.checkpoints.find_and_verify import CheckpointError, newest_good, open_checkpoint, published


def test_the_newest_checkpoint_is_chosen(tmp_path: Path) -> None:
    for step in (90, 1000, 200):
        write_checkpoint(tmp_path, step)
    assert newest_good(tmp_path).folder.name == "step00001000"


def test_a_flipped_bit_costs_one_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_checkpoint(tmp_path, 10)
    damaged = write_checkpoint(tmp_path, 20) / "layer_00-model_states.pt"
    damaged.write_bytes(b"wEights")
    with caplog.at_level(logging.WARNING):
        assert newest_good(tmp_path).step == 10
    assert f"{damaged} was changed after it was written" in caplog.text


def test_a_truncated_file_is_told_by_its_size(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path, 20) / "layer_00-model_states.pt").write_bytes(b"wei")
    with pytest.raises(CheckpointError, match=r"has 3 bytes, wanted 7, and no other checkpoint"):
        newest_good(tmp_path)


def test_a_missing_file_is_damage(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path, 20) / "layer_00-model_states.pt").unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        newest_good(tmp_path)


@pytest.mark.parametrize(
    ("call", "name"), [("open", "manifest.json"), ("open", "layer_00-model_states.pt"), ("stat", "layer_00-model_states.pt")]
)
def test_what_cannot_be_read_is_read_again_and_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: str) -> None:
    monkeypatch.setattr(find_and_verify, "READ_AGAIN_SECONDS", (0.0, 0.0))
    write_checkpoint(tmp_path, 10)
    damaged = write_checkpoint(tmp_path, 20) / name
    failures = 2
    works = getattr(Path, call)

    def fail(path: Path, *arguments: Any, **options: Any) -> Any:
        nonlocal failures
        if path == damaged and failures:
            failures -= 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return works(path, *arguments, **options)

    monkeypatch.setattr(Path, call, fail)
    assert newest_good(tmp_path).step == 20
    failures = 1000
    with pytest.raises(
        ValueError, match=rf"step00000020/{name} cannot be read \(Stale file handle\)\. So no older checkpoint takes its place"
    ):
        newest_good(tmp_path)


def test_a_checkpoint_whose_manifest_cannot_be_looked_at_counts_as_one_or_a_save_would_remove_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, stat = write_checkpoint(tmp_path, 20), Path.stat

    def fail(path: Path, **options: Any) -> Any:
        if path == folder / "manifest.json":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", fail)
    assert published(tmp_path) == [folder]


def test_an_interrupted_save_is_passed_over(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 10)
    (write_checkpoint(tmp_path, 20) / "manifest.json").unlink()
    assert newest_good(tmp_path).step == 10
    with pytest.raises(CheckpointError, match="never finished"):
        open_checkpoint(tmp_path / "checkpoints" / "step00000020")


@pytest.mark.parametrize("text", ["", "[]", '{"step": "1", "files": {}}', '{"step": 1, "files": {"a": {}}}', '{"step": 1, "files": []}'])
def test_a_torn_manifest_is_no_manifest(tmp_path: Path, text: str) -> None:
    write_checkpoint(tmp_path, 10)
    (write_checkpoint(tmp_path, 20) / "manifest.json").write_text(text, encoding="utf-8")
    assert newest_good(tmp_path).step == 10


def test_a_run_without_a_checkpoint_says_when_it_will_have_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"training": {"save_interval_steps": 500}}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"no finished checkpoint yet.*every 500 steps"):
        newest_good(tmp_path)


def test_the_fingerprint_changes_with_any_file(tmp_path: Path) -> None:
    one, same, other = (
        write_checkpoint(tmp_path / "a", 5),
        write_checkpoint(tmp_path / "b", 5),
        write_checkpoint(tmp_path / "c", 5, b"weightz"),
    )
    assert open_checkpoint(one).fingerprint == open_checkpoint(same).fingerprint != open_checkpoint(other).fingerprint
