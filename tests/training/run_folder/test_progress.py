"""How long a run is, from its configuration and from what it has read so far."""

import json
import shutil

import pytest

import ds_configs
from tests.training.checkpoint_files import write_checkpoint
from training.checkpoints.find_and_verify import CheckpointError, published
from training.config import resolve
from training.run_folder.progress import finished_step, last_step_of


@pytest.fixture
def saved(make_run):
    """The configuration of a run of so many tokens, with two checkpoints: all of it at 128 tokens (8 rows of 16) a step is 8 steps."""
    run = make_run(training__steps=None, training__tokens=1024)
    for step in (4, 8):
        folder = run.folder / f"checkpoints/step{step:08d}"
        folder.mkdir(parents=True)
        manifest = {"step": step, "consumed_samples": 8 * step, "files": {}}
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return lambda *overrides: resolve(ds_configs.read(run.config, overrides))


def test_a_newest_checkpoint_that_is_damaged_leaves_the_length_to_the_one_before(saved):
    config = saved("train_batch_size=16")
    (config.folder / "checkpoints/step00000008/manifest.json").write_text("{", encoding="utf-8")
    assert last_step_of(config, None) == 6


def test_a_finished_run_whose_last_checkpoint_has_lost_a_part_of_a_file_says_so_when_it_is_started_again(make_run):
    run = make_run(training__steps=4)
    config = resolve(ds_configs.read(run.config))
    whole, cut = (write_checkpoint(run.folder, step) for step in (2, 4))
    assert finished_step(config, 4) == 4
    (cut / "layer_00-model_states.pt").write_bytes(b"wei")
    with pytest.raises(
        CheckpointError,
        match=r"tiny is finished, but \S+ has 3 bytes, wanted 7\. If all hosts see it so, remove that checkpoint: the same command",
    ):
        finished_step(config, 4)
    assert finished_step(config, 6) is None, "a run that goes on chooses its checkpoint, and says what is wrong, by itself"
    shutil.rmtree(cut)
    assert finished_step(config, 4) is None
    assert published(run.folder) == [whole]


@pytest.mark.parametrize(
    ("tokens", "batch", "last"), [(1024, 8, 8), (2048, 8, 16), (2048, 16, 12), (2048, 4, 24), (2000, 16, 12), (600, 16, 8)]
)
def test_steps_of_another_batch_count_with_what_they_read(saved, tokens, batch, last):
    assert last_step_of(saved(f"training.tokens={tokens}", f"train_batch_size={batch}"), None) == last
