"""Where a run's folder is: moved, copied, or with its checkpoints on a disk of their own."""

import json
import shutil
import subprocess
import types

import pytest

import ds_configs
from ds_configs import ConfigError
from tests.training.checkpoint_files import write_checkpoint
from training.config import resolve
from training.run_folder.compatibility import check_folder


@pytest.fixture
def saved(make_run):
    """A run with a checkpoint and its record."""
    run = make_run()
    write_checkpoint(run.folder, 2)
    record = {**ds_configs.load(run.config).values, "provenance": {}}
    (run.folder / "config.json").write_text(json.dumps(record), encoding="utf-8")
    return run


def check(path, *overrides):
    return check_folder(resolve(ds_configs.read(path, overrides), 2))


def test_the_record_of_a_run_that_was_moved_starts_nothing_where_it_was(saved, tmp_path):
    moved = tmp_path / "elsewhere/best"
    shutil.copytree(saved.folder, moved)
    ways = r"runs/tiny\. To go on there: run\.directory=.*/elsewhere run\.name=best\. For another run: run\.name=NAME\."
    with pytest.raises(ConfigError, match=ways):
        check(moved / "config.json", "training.steps=9")
    with pytest.raises(ConfigError, match=ways):
        check(moved / "config.json", "run.seed=9", "run.description=again")  # These name no other place.
    assert check(moved / "config.json", f"run.directory={moved.parent}", "run.name=best") == []
    assert check(moved / "config.json", "run.name=another") == []
    assert check(saved.folder / "config.json") == []
    alone = shutil.copy(moved / "config.json", tmp_path)
    assert check(alone) == [], "a copy of the record is a configuration like others"


def test_another_way_to_the_same_folder_moves_no_run(saved, tmp_path):
    (tmp_path / "link").symlink_to(saved.folder.parent)
    assert check(tmp_path / "link/tiny/config.json") == []
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("no mount: apt-get install mount")
    done = subprocess.run(["mount", "--bind", saved.folder.parent, mounted], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a folder cannot be mounted here: {done.stderr.strip()}")
    try:
        assert check(mounted / "tiny/config.json") == []
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_the_disk_of_the_checkpoints_is_the_one_that_needs_space(saved, monkeypatch):
    asked = []

    def usage(path):
        asked.append(path)
        return types.SimpleNamespace(free=0)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(ConfigError, match=r"runs/tiny/checkpoints: 0\.0 GB free"):
        check(saved.config)
    with pytest.raises(ConfigError, match=r"runs/another: 0\.0 GB free"):
        check(saved.config, "run.name=another")
    assert asked == [saved.folder / "checkpoints", saved.folder.parent]
