"""A run says which text it read, goes on with no other, and what it exports is read with its own tokenizer."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import ds_configs
from data.batches.datasets import open_datasets
from data.inspect import main as inspect
from data.prepare import plan, prepare
from data.tokenizers.tokenizer_folder import fingerprint
from inference.export import export
from inference.exporting.model_path import find_model
from tests import processes
from training.checkpoints.find_and_verify import CheckpointError
from training.config import RunConfig, resolve
from training.launch.world import World
from training.preflight import preflight
from training.run_folder.compatibility import check_folder, check_text
from training.run_folder.provenance import keep_text

pytestmark = pytest.mark.distributed


class Trained:
    """A run of two steps on a text of its own, and what a later start of it would do."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tiny.json"
        self.text = folder / "novel.txt"
        self.run = folder / "runs/tiny"

    def config(self, *overrides: str) -> RunConfig:
        name = [] if any(override.startswith("run.name=") for override in overrides) else ["run.name=tiny"]
        return resolve(ds_configs.read(self.path, ["training.steps=4", *name, *overrides]), 2)

    def as_person(self, *overrides: str) -> None:
        """What `./run_pretrain.sh` checks before it prepares anything."""
        config = self.config(*overrides)
        check_folder(config)
        check_text(config, plan(config.data).identity)

    def as_rank(self, *overrides: str) -> None:
        """What the first rank of a launched job checks before it meets the others."""
        for lock in self.path.parent.glob("runs/*/lock"):
            lock.unlink()  # A rank holds it until its process ends, and here all are in one.
        preflight(self.config(*overrides), World(rank=0, local_rank=0, size=2, local_size=2, master_addr="localhost", master_port=1))

    def change_text(self) -> None:
        self.text.write_text(self.text.read_text(encoding="utf-8").replace("明", "暗") + "甲乙丙。\n", encoding="utf-8")

    def edit_checkpoints(self, text: dict[str, str] | None) -> None:
        for path in self.run.glob("checkpoints/*/manifest.json"):
            manifest = {key: value for key, value in json.loads(path.read_text(encoding="utf-8")).items() if key != "text"}
            path.write_text(json.dumps(manifest | ({"text": text} if text else {})), encoding="utf-8")


@pytest.fixture(scope="module")
def saved(make_run, verse, tmp_path_factory) -> Path:
    """Do not change it: use `trained`."""
    folder: Path = tmp_path_factory.mktemp("saved")
    run = make_run(training__steps=2, run__directory=str(folder / "runs"), data__path=str(folder / "novel.txt"))
    values: dict[str, Any] = json.loads(run.config.read_text(encoding="utf-8"))
    values["data"]["directory"] = str(folder / "stores")
    run.config = folder / "tiny.json"
    run.config.write_text(json.dumps(values), encoding="utf-8")
    shutil.copy(verse, folder / "novel.txt")
    prepare(resolve(ds_configs.load(run.config), 2).data)
    run.run()
    return folder


@pytest.fixture
def trained(saved, tmp_path) -> Trained:
    """A copy of the run, its text and its store, to do with as one likes."""
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    for name in ("tiny.json", "runs/tiny/config.json"):
        (folder / name).write_text((saved / name).read_text(encoding="utf-8").replace(str(saved), str(folder)), encoding="utf-8")
    made = Trained(folder)
    prepare(made.config().data)
    return made


def test_the_run_its_checkpoints_its_export_and_the_card_name_the_text_and_the_tokenizer(trained, tmp_path):
    text = open_datasets(trained.config().data, seed=7).text

    assert json.loads((trained.run / "config.json").read_text(encoding="utf-8"))["provenance"]["text"] == text
    assert json.loads((trained.run / "checkpoints/step00000002/manifest.json").read_text(encoding="utf-8"))["text"] == text
    assert json.loads((trained.run / "store.json").read_text(encoding="utf-8"))["identity"] == text["identity"]
    assert export(find_model(trained.run), tmp_path / "out")
    assert json.loads((tmp_path / "out/export.json").read_text(encoding="utf-8"))["text"] == text
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert all(value in card for value in text.values())
    assert "source: novel.txt" in card


def test_a_changed_text_is_refused_before_it_is_prepared_with_what_changed_and_both_ways_on(trained):
    trained.change_text()

    with pytest.raises(
        ds_configs.ConfigError,
        match=r"not the text of \S+step00000002: novel\.txt has changed\. Use another run\.name, or put back .* \(novel-\w{12}\)\.$",
    ):
        trained.as_person()
    assert len(list(trained.path.parent.glob("stores/*/manifest.json"))) == 1


def test_the_command_refuses_it_with_one_line_and_code_2(trained, root):
    trained.change_text()
    done = processes.run([sys.executable, "run_pretrain.sh", str(trained.path), "training.steps=4"], cwd=root)
    assert done.returncode == 2
    *said, last = done.stderr.splitlines()
    assert "novel.txt has changed" in last
    assert all("not the text that" in line for line in said), "what the look at the raw files found"


def test_a_rank_reads_what_was_prepared_and_refuses_another_text(trained):
    trained.change_text()
    trained.as_rank()  # Nobody prepared the new text yet.
    prepare(trained.config().data)

    with pytest.raises(ds_configs.ConfigError, match=r"novel\.txt has changed"):
        trained.as_rank()
    trained.as_rank("run.name=another")


def test_a_rank_without_a_store_names_the_command_that_makes_it_with_its_overrides(trained):
    overrides = ["data.chapters.last=12", "run.name=another"]
    world = World(rank=0, local_rank=0, size=2, local_size=2, master_addr="localhost", master_port=1)
    with pytest.raises(ValueError, match=r"data\.prepare \S+tiny\.json data\.chapters\.last=12 run\.name=another \(novel-\w{12} was made"):
        preflight(trained.config(*overrides), world, overrides)


def test_the_old_text_put_back_goes_on(trained):
    old = trained.text.read_bytes()
    trained.change_text()
    prepare(trained.config().data)
    trained.text.write_bytes(old)
    trained.as_person()
    prepare(trained.config().data)
    trained.as_rank()


@pytest.mark.parametrize("override", ["data.num_workers=3", "data.max_bad_ratio=0.5", "data.shuffle_seed=3"])
def test_what_changes_no_token_does_not_keep_a_run_from_going_on(trained, override):
    trained.as_person(override)
    trained.as_rank(override)


def test_a_text_that_was_moved_goes_on(trained, tmp_path):
    moved = shutil.move(trained.text, tmp_path / "novel.txt")
    trained.as_person(f"data.path={moved}")
    prepare(trained.config(f"data.path={moved}").data)
    trained.as_rank(f"data.path={moved}")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.norm_eps=0.5", r"model\.norm_eps was 1e-05, is 0\.5"),
        ("model.family=opt", r'model\.family was "gpt2", is "opt"'),
        ("run.seed=8", r"run\.seed differs from the run"),
        ("data.seq_length=8", r"data\.seq_length was 16, is 8"),
        ("data.tail=wrap", r'data\.tail was "drop", is "wrap"'),
        ("data.windows=documents", r'data\.windows was "stream", is "documents"'),
        ("data.clean=[]", r"data\.clean was \[.*\], is \[\]"),
        ("data.chapters.last=19", r"data\.chapters\.last was not there, is 19"),
    ],
)
def test_what_changes_the_model_the_tokens_or_their_order_is_refused_by_its_key(trained, override, said):
    with pytest.raises(ds_configs.ConfigError, match=said):
        trained.as_person(override)


def test_a_default_that_is_written_out_later_is_not_named_for_what_has_changed(trained):
    with pytest.raises(ds_configs.ConfigError, match=r"model\.num_layers was 2, is 4\)"):
        trained.as_person("model.attention_dropout=0.1", "model.num_layers=4")


def test_a_default_that_is_written_out_later_changes_nothing(trained):
    for path in (trained.path, trained.run / "config.json"):
        values = json.loads(path.read_text(encoding="utf-8"))
        del values["run"]["seed"]
        path.write_text(json.dumps(values), encoding="utf-8")
    trained.as_person("model.position_offset=0", "model.norm_eps=1e-5", "run.seed=1024")


def test_a_run_whose_configuration_is_lost_goes_on_and_that_nothing_was_compared_is_said(trained):
    assert check_folder(trained.config()) == []
    (trained.run / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json: unreadable .* remove it to have it written again"):
        trained.as_person()
    (trained.run / "config.json").unlink()
    (line,) = check_folder(trained.config("run.seed=8"))
    assert "config.json: not there, so nothing says whether model, optimizer and seed are those of its checkpoints." in line
    assert check_folder(trained.config("run.name=another")) == []


def test_another_tokenizer_of_the_same_text_is_refused(trained):
    datasets = open_datasets(trained.config().data, seed=7)
    trained.edit_checkpoints({**datasets.text, "tokenizer": "0" * 64})

    with pytest.raises(ds_configs.ConfigError, match=r"the tokenizer is not that of \S+: SHA-256 \w{12}, wanted 0{12}\."):
        trained.as_rank()


def test_a_checkpoint_that_does_not_say_its_text_goes_on_with_its_own_tokenizer_only(trained, caplog):
    trained.edit_checkpoints(None)
    trained.as_person()
    with caplog.at_level(logging.WARNING):
        trained.as_rank()
    assert "step00000002 does not say which text it was trained on" in caplog.text

    trained.change_text()  # Which trains another tokenizer.
    prepare(trained.config().data)
    with pytest.raises(ds_configs.ConfigError, match=r"the tokenizer of the token store is not the one in \S+/tokenizer"):
        trained.as_rank()


def test_a_tokenizer_that_an_earlier_start_left_is_replaced_by_the_stores(trained):
    datasets = open_datasets(trained.config().data, seed=7)
    (trained.run / "tokenizer/merges.txt").write_text("", encoding="utf-8")
    keep_text(datasets, trained.run)

    assert fingerprint(trained.run / "tokenizer") == datasets.text["tokenizer"]
    assert json.loads((trained.run / "store.json").read_text(encoding="utf-8")) == datasets.manifest


def test_an_export_is_never_read_with_another_tokenizer(trained, tmp_path):
    shutil.rmtree(trained.run / "tokenizer")
    shutil.copytree(
        trained.path.parent / "stores" / open_datasets(trained.config().data, 7).folder.name / "tokenizer", trained.run / "tokenizer"
    )
    (trained.run / "tokenizer/merges.txt").write_text("", encoding="utf-8")

    with pytest.raises(CheckpointError, match=r"is not the tokenizer that \S+step00000002 was trained with .* token store novel-\w{12}\."):
        export(find_model(trained.run), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_inspect_says_which_text_a_run_read_and_shows_its_samples(trained, capsys):
    datasets = open_datasets(trained.config().data, seed=7)
    assert inspect([str(trained.run)]) == 0
    said = capsys.readouterr().out
    source = datasets.manifest["inputs"][0]["sha256"]
    for wanted in (f"novel.txt  SHA-256 {source}", datasets.text["identity"], datasets.text["tokenizer"], "clean: min_length (chars 4)"):
        assert wanted in said
    assert "train: 18 documents" in said
    assert "valid: 2 documents" in said
    assert "Checkpoint step00000002, of this text: samples 0 to 15 were read." in said
    assert "train, novel, document 1: 第2回 / " in said

    assert inspect([str(trained.run), "--sample", "5"]) == 0
    assert capsys.readouterr().out == datasets.tokenizer.decode(datasets.train.sample(5).tolist()) + "\n"
    assert inspect([str(trained.run), "--window", "1", "--split", "valid"]) == 0
    assert capsys.readouterr().out == datasets.tokenizer.decode(datasets.valid._stream.read(16, 16).tolist()) + "\n"


def test_inspect_answers_for_a_store_and_for_a_run_whose_store_is_gone(trained, capsys):
    datasets = open_datasets(trained.config().data, seed=7)
    assert inspect([str(datasets.folder)]) == 0
    assert datasets.text["identity"] in capsys.readouterr().out
    assert inspect([str(datasets.folder), "--sample", "0"]) == 2
    assert "the order of samples belongs to a run" in capsys.readouterr().err
    assert inspect([str(datasets.folder), "--window", "100000"]) == 2
    assert "has windows 0 to" in capsys.readouterr().err

    shutil.rmtree(datasets.folder)
    assert inspect([str(trained.run)]) == 0
    said = capsys.readouterr().out
    assert "Its store is not in" in said
    assert datasets.text["identity"] in said
    assert inspect([str(trained.run), "--sample", "0"]) == 2
    assert "its store is not here" in capsys.readouterr().err
    assert inspect([str(trained.path.parent)]) == 2
    assert "neither a token store (data/stores/NAME) nor a run (runs/NAME)" in capsys.readouterr().err
