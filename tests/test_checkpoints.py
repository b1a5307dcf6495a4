"""What people copy beside a run's checkpoints under names of their own is none of them, for whoever reads the run."""

import json
from pathlib import Path

import pytest

import ds_configs
from data.inspect import Subject, _seen
from data.store.identity import Identity
from inference.exporting.model_path import find_model
from training.checkpoints.find_and_verify import CheckpointError, newest_good, published, step_of, tag_of
from training.config import RunConfig, _recorded_model, resolve
from training.run_folder.compatibility import check_text

COPIES = ["step00000900_best", "best", "stepping", "step900", "step00000900.old"]


def save(run: Path, name: str, identity: str, **facts: object) -> Path:
    folder = run / "checkpoints" / name
    folder.mkdir(parents=True)
    text = {"identity": identity, "store": "novel-1a2b", "tokenizer": "3c4d"}
    content = {"step": step_of(name) or 900, "files": {}, "consumed_samples": 8, "text": text, **facts}
    (folder / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture
def config(root, tmp_path) -> RunConfig:
    """A run with copies of a checkpoint that was trained with other text, and no checkpoint."""
    made = resolve(ds_configs.load(root / "ds_configs/quickstart.json", [f"run.directory={tmp_path}"]))
    for name in COPIES:
        save(made.folder, name, "of other text")
    (made.folder / "config.json").write_text(json.dumps(made.values), encoding="utf-8")
    return made


def test_names_and_steps_of_checkpoints():
    assert [step_of(tag_of(step)) for step in (0, 100, 123456789)] == [0, 100, 123456789]
    assert [step_of(name) for name in COPIES] == [None] * len(COPIES)


def test_copies_make_no_run_that_was_saved(config):
    assert not published(config.folder)
    assert _recorded_model(config.run) is None
    with pytest.raises(CheckpointError, match="no finished checkpoint yet"):
        newest_good(config.folder)
    save(config.folder, tag_of(100), "of this text")
    assert published(config.folder)
    assert _recorded_model(config.run) == config.values["model"]


def test_neither_a_resume_nor_inspection_nor_inference_takes_a_copy_for_the_newest(config):
    now = Identity({}, [])
    check_text(config, now)
    for step in (100, 200):
        save(config.folder, tag_of(step), now.sha256)
    check_text(config, now)
    subject = Subject(config.folder, {"identity": now.sha256}, None, config.data)
    assert "Checkpoint step00000200, of this text: samples 0 to 7 were read." in list(_seen(subject))
    assert newest_good(config.folder).folder.name == "step00000200"


def test_inspection_says_which_samples_a_run_left_out_for_spikes(config):
    now = Identity({}, [])
    save(config.folder, tag_of(200), now.sha256, spikes={"skipped_samples": [[4, 8]]})
    subject = Subject(config.folder, {"identity": now.sha256}, None, config.data)
    assert "samples 0 to 11 were read, but for those of spikes of the loss: 4 to 7." in "".join(_seen(subject))


def test_a_copy_can_be_named(config):
    copy = config.folder / "checkpoints" / "step00000900_best"
    assert find_model(copy).kind == "checkpoint"
