"""What a run writes about itself is read back as it was meant, and cannot end the run."""

import csv
import json
import logging
import math
import shutil
import sys
import time
import types

import pytest

import ds_configs
from ds_configs import ConfigError
from ds_configs.atomic_files import strict_json
from training.config import resolve
from training.run_folder.monitors import AppendedFile, check_outputs
from training.run_folder.outputs import RunOutputs

RECORD = {"train/loss": 5.5, "optim/grad_norm": 1.25, "optim/lr": 0.01}
END = {"train/tokens": 512, "perf/tokens_per_second": 99.0, "memory/stage_0_gib": 0.5}


@pytest.fixture
def config(make_run):
    """A new run's configuration, its folder made; `write` of RunOutputs is then as in a run."""

    def make(**changes):
        resolved = resolve(ds_configs.load(make_run(**changes).config))
        resolved.folder.mkdir(parents=True)
        return resolved

    return make


def curves(folder):
    """Tag -> [(step, value)], as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    read.Reload()
    scalars = {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    texts = {
        tag: [(event.step, event.tensor_proto.string_val[0].decode()) for event in read.Tensors(tag)] for tag in read.Tags()["tensors"]
    }
    return {**scalars, **texts}


def write(config, *, start_step=0, steps, loss=5.5):
    outputs = RunOutputs(config, last_step=8, start_step=start_step)
    outputs.write([{"step": step, **RECORD, "train/loss": loss, **(END if step == steps[-1] else {})} for step in steps])
    outputs.write([{"step": steps[-1], "valid/loss": 4.0, "valid/bits_per_char": 6.5}])
    outputs.passage("春眠不觉晓", steps[-1])
    outputs.close()


def test_tensorboard_shows_every_tag_with_its_values_and_steps(config):
    run = config()
    write(run, steps=[1, 2, 3])
    found = curves(run.folder / "tensorboard")
    assert found["train/loss"] == [(1, 5.5), (2, 5.5), (3, 5.5)]
    assert found["optim/lr"][0] == (1, pytest.approx(0.01))  # TensorBoard keeps fp32.
    assert found["memory/stage_0_gib"] == [(3, 0.5)]
    assert found["valid/bits_per_char"] == [(3, 6.5)]
    assert found["sample/text_summary"] == [(3, "春眠不觉晓")]
    assert (run.folder / "samples/step00000003.txt").read_text(encoding="utf-8") == "春眠不觉晓\n"


@pytest.mark.parametrize("again_from", [0, 2])
def test_steps_that_come_again_replace_those_of_the_start_before(config, again_from):
    run = config(csv_monitor__enabled=True)
    write(run, steps=[1, 2, 3, 4], loss=5.5)
    write(run, start_step=again_from, steps=list(range(again_from + 1, 4)), loss=3.5)
    expected = [(step, 5.5 if step <= again_from else 3.5) for step in range(1, 4)]
    assert curves(run.folder / "tensorboard")["train/loss"] == expected
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [(record["step"], record["train/loss"]) for record in map(json.loads, lines) if "train/loss" in record] == expected
    with (run.folder / "csv/train_loss.csv").open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["step", "train/loss"]
    assert [(int(step), float(value)) for step, value in rows] == expected
    assert [path.name for path in (run.folder / "samples").iterdir()] == ["step00000003.txt"], "step 4 has not come again yet"


def test_a_clock_that_was_set_back_puts_no_start_before_the_one_that_it_goes_on_from(config, monkeypatch):
    run = config()
    write(run, steps=[1, 2, 3, 4], loss=5.5)
    monkeypatch.setattr("training.run_folder.monitors.time", types.SimpleNamespace(time=lambda: time.time() - 3600))
    write(run, start_step=2, steps=[3, 4, 5], loss=3.5)
    assert curves(run.folder / "tensorboard")["train/loss"] == [(1, 5.5), (2, 5.5), (3, 3.5), (4, 3.5), (5, 3.5)]


def test_damaged_lines_cost_themselves_only_and_are_counted(config, caplog):
    run = config(csv_monitor__enabled=True)
    write(run, steps=[1, 2, 3])
    for path in (run.folder / "metrics.jsonl", run.folder / "csv/train_loss.csv"):
        lines = path.read_bytes().splitlines(keepends=True)
        lines[1] = b"\xff" + lines[1]
        path.write_bytes(b"".join(lines) + lines[2][:3])
    write(run, start_step=3, steps=[4])
    records = map(json.loads, (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    assert [record["step"] for record in records] == [1, 3, 3, 4, 4]
    assert (run.folder / "csv/train_loss.csv").read_text(encoding="utf-8").split() == ["step,train/loss", "2,5.5", "3,5.5", "4,5.5"]
    assert [record.message.partition(": ")[2] for record in caplog.records] == ["damaged lines, which are left out: 2."] * 2


def test_the_monitors_write_where_deepspeeds_keys_say(config, tmp_path):
    run = config(
        tensorboard={"enabled": True, "output_path": str(tmp_path / "a"), "job_name": "one"},
        csv_monitor={"enabled": True, "output_path": str(tmp_path / "b")},
    )
    write(run, steps=[1])
    assert curves(tmp_path / "a/one")["train/loss"] == [(1, 5.5)]
    assert (tmp_path / f"b/{run.run.name}/optim_lr.csv").read_text(encoding="utf-8") == "step,optim/lr\n1,0.01\n"
    assert not (run.folder / "tensorboard").exists()


def test_somebodys_own_files_beside_the_curves_stay_as_they_are(config, tmp_path):
    folder = tmp_path / "results/notes"
    folder.mkdir(parents=True)
    (folder / "of_last_year.csv").mkdir()
    own = {"notes.csv": b"step,note\n1,good\n20,better\n", "names.csv": "名称,数\n1,2\n".encode("gb18030")}
    for name, content in own.items():
        (folder / name).write_bytes(content)
    run = config(csv_monitor={"enabled": True, "output_path": str(tmp_path / "results"), "job_name": "notes"})
    write(run, steps=[1, 2])
    write(run, steps=[1])
    assert {name: (folder / name).read_bytes() for name in own} == own
    assert (folder / "optim_lr.csv").read_text(encoding="utf-8") == "step,optim/lr\n1,0.01\n"


def test_a_folder_that_holds_the_curves_of_another_run_is_refused(config, tmp_path):
    monitor = {"enabled": True, "output_path": str(tmp_path / "results"), "job_name": "novel"}
    run = config(csv_monitor=monitor)
    write(run, steps=[1, 2])
    check_outputs(run)  # It goes on there itself.
    other = config(csv_monitor=monitor, run__name="other")
    with pytest.raises(ConfigError, match=r"csv_monitor writes to .*results/novel, where the curves of the run in .*/tiny are; .*job_name"):
        check_outputs(other)
    check_outputs(config(csv_monitor={**monitor, "job_name": "other"}, run__name="third"))
    namesake = config(csv_monitor=monitor, run__directory=str(tmp_path / "elsewhere"))
    with pytest.raises(ConfigError, match=r"where the curves of the run in .*/tiny are"):
        check_outputs(namesake)
    shutil.rmtree(run.folder)  # As if it had been moved there.
    check_outputs(namesake)


def test_values_that_are_not_finite_are_valid_json():
    text = strict_json({"a": math.inf, "b": [math.nan, 1.5], "c": {"d": -math.inf}, "e": True, "f": "文"})
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": [None, 1.5], "c": {"d": None}, "e": True, "f": "文"}


def test_what_cannot_be_written_is_said_once_and_written_when_it_can_be(config, caplog):
    caplog.set_level(logging.INFO)
    run = config()
    outputs = RunOutputs(run, last_step=8, start_step=0)
    outputs.write([{"step": 1, **RECORD}])
    # A disk that went away: files become folders, folders files.
    for path in (run.folder / "metrics.jsonl", *(run.folder / "tensorboard").glob("events*")):
        path.rename(path.with_name("aside-" + path.name))
        path.mkdir()
    (run.folder / "samples").touch()
    for step in (2, 3):
        outputs.write([{"step": step, **RECORD}])
        outputs.passage("夜来风雨声", step)
    said = [record.getMessage() for record in caplog.records if "cannot be written" in record.getMessage()]
    assert len(said) == 3, "the metrics, TensorBoard and the samples, each once"
    assert all("Training goes on; later writes try again." in line for line in said)
    for path in (run.folder / "metrics.jsonl", *(run.folder / "tensorboard").glob("events*")):
        shutil.rmtree(path)
        path.with_name("aside-" + path.name).rename(path)
    (run.folder / "samples").unlink()
    outputs.write([{"step": 4, **RECORD}])
    outputs.passage("花落知多少", 4)
    assert sum("is written again" in record.getMessage() for record in caplog.records) == 3
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert [step for step, _ in curves(run.folder / "tensorboard")["train/loss"]] == [1, 2, 3, 4]
    assert [path.name for path in (run.folder / "samples").iterdir()] == ["step00000004.txt"]


def test_a_piece_that_does_not_fit_leaves_no_half_of_it(tmp_path):
    import resource

    file = AppendedFile(tmp_path / "a")
    file.append(b"first\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))  # As on a full disk: 4 of the 7 bytes fit.
    try:
        file.append(b"second\n")
        assert file.path.read_bytes() == b"first\n"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    file.append(b"third\n")
    assert file.path.read_bytes() == b"first\nsecond\nthird\n"


class Session:
    """What `wandb.init` gives, as far as a run uses it; wandb itself is installed only by those who want it."""

    def __init__(self):
        self.logged = []
        self.fails = self.finished = False

    def log(self, values, step):
        if self.fails:
            raise ConnectionError("no network")
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


def test_wandb_gets_every_value_and_its_failure_costs_one_warning_and_no_value(config, caplog, monkeypatch):
    session, asked = Session(), {}
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **settings: (asked.update(settings), session)[1]))
    run = config(wandb={"enabled": True, "project": "novel", "team": "us"})
    outputs = RunOutputs(run, last_step=8, start_step=0)
    outputs.write([{"step": 1, **RECORD}])
    session.fails = True
    for step in (2, 3):
        outputs.write([{"step": step, **RECORD}])
    assert session.logged == [(1, RECORD)]
    session.fails = False
    outputs.write([{"step": 4, **RECORD}])
    outputs.close()
    assert (asked["project"], asked["entity"], asked["name"]) == ("novel", "us", run.run.name)
    assert session.logged == [(step, RECORD) for step in (1, 2, 3, 4)]
    assert session.finished
    assert [message for message in caplog.messages if "cannot be written" in message] == [
        "wandb cannot be written (ConnectionError: no network). Training goes on; later writes try again."
    ]
    assert len((run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 4
