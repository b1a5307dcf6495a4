"""Preparations that are killed, go on elsewhere or run twice, and what is checked before any work."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data.config import TokenizerConfig
from data.corpora import sources
from data.documents import DataError
from data.prepare import prepare
from data.steps.clean import clean_part
from data.steps.tasks import Task, run
from tests import processes
from tests.data.stores import contents, large_config, write_config


def test_what_a_preparation_has_left_behind_needs_no_room_again(make, verse, tmp_path, monkeypatch):
    name = prepare(make(directory=str(tmp_path / "elsewhere"))).name
    needed = (64 << 20) + 2 * verse.stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(needed, 0, needed - 1000))
    with pytest.raises(DataError, match="MiB wanted"):
        prepare(make())

    work = tmp_path / "stores" / f".{name}.work"
    work.mkdir(exist_ok=True)
    (work / "begun").write_bytes(bytes(2000))

    assert prepare(make()).name == name


def test_a_file_that_was_away_for_a_while_is_not_remembered_as_unreadable(make, verse, tmp_path):
    config = make()
    (part,) = sources.parts(config, tmp_path)
    task = Task(tmp_path / "00000", clean_part, (config, part))
    verse.rename(tmp_path / "away")
    with pytest.raises(DataError, match=r"cannot be read \(No such file or directory\)\. Mend it"):
        run([task], 1)

    (tmp_path / "away").rename(verse)

    assert [result["num_bad"] for result in run([task], 1)] == [0]


def without_packages(names, arguments):
    """Run the command where some packages cannot be imported; its exit code and last line."""
    program = (
        f"import sys\nfor name in {names!r}: sys.modules[name] = None\n"
        "import importlib.util as util; find = util.find_spec\n"
        f"util.find_spec = lambda name, *more: None if {{name, name.split('.')[0]}} & set({names!r}) else find(name, *more)\n"
        f"from data.prepare import main; sys.exit(main({arguments!r}))"
    )
    done = processes.run([sys.executable, "-c", program])
    return done.returncode, done.stderr.strip().splitlines()[-1]


def test_missing_packages_are_named_together_before_any_work(make, verse, tmp_path):
    sentencepiece = TokenizerConfig(kind="sentencepiece_bpe", vocab_size=480)
    config_file = write_config(make(tokenizer=sentencepiece, documents="parquet"), tmp_path / "run.json")

    code, line = without_packages(["sentencepiece", "pyarrow"], [config_file])

    assert code == 2
    assert line == (
        "verse: packages are missing: sentencepiece (data.tokenizer.kind), pyarrow (data.documents)."
        " Run: .venv/bin/pip install -r requirements-data.txt"
    )
    assert not list((tmp_path / "stores").glob(".*.work"))


def test_a_preparation_goes_on_when_zstd_was_installed_in_between(large, whole, tmp_path):
    config = large_config(large, tmp_path / "stores")
    config_file = write_config(config, tmp_path / "run.json")
    work = tmp_path / "stores" / f".{whole.name}.work"
    for step in ("1-clean", "3-shuffle-0"):
        # Stopped in this step by a file that cannot be made, then gone on with in another way of writing.
        work.mkdir(parents=True, exist_ok=True)
        blocked = work / {"1-clean": "2-copies", "3-shuffle-0": "tokenizer"}[step]
        blocked.symlink_to(tmp_path / "nowhere" / "at all")
        assert without_packages(["backports.zstd"] if step == "1-clean" else [], [config_file])[0] != 0
        assert list((work / step).iterdir())
        blocked.unlink()

    assert contents(prepare(config)) == contents(whole)


STEPS = [
    "1-clean/*.done.json",
    "2-copies/*.done.json",
    "3-shuffle-0/part-*.done.json",
    "3-shuffle-0/shard-*.done.json",
    "tokenizer.done.json",
    "4-tokens/*.done.json",
    "store/*.bin",
]
"""What appears in the work folder, in this order."""


def kill_as_soon_as(has_happened, config_file):
    """Start a preparation and kill it when its work folder shows that something was done; False if it had ended by itself."""
    with Path(config_file).with_suffix(".log").open("wb") as log:
        process = processes.start([sys.executable, "-m", "data.prepare", config_file], stdout=log, stderr=log)
        try:
            while process.poll() is None and not has_happened():
                time.sleep(0.001)
        finally:
            process.kill()
            code = process.wait()
    assert code in (0, -signal.SIGKILL), Path(log.name).read_text(encoding="utf-8")
    return code != 0


def start_a_long_training(config_file):
    """The training is replaced by a hash of some hours, which is C code without Python's lock as well, and needs no large text."""
    program = (
        "import hashlib, runpy, sys\nfrom data.tokenizers import trainers\n"
        "def train(*_): print('training', flush=True); hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)\n"
        "trainers.train = train\nrunpy.run_module('data.prepare', run_name='__main__', alter_sys=True)"
    )
    process = processes.start([sys.executable, "-c", program, config_file], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "training\n"
    time.sleep(1)  # Into the C code. Too early, and the signal is heard all the same.
    return process


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_preparation_leaves_at_once_while_c_code_trains_a_tokenizer(number, make, tmp_path):
    process = start_a_long_training(write_config(make(), tmp_path / "run.json"))
    process.send_signal(number)
    _, errors = process.communicate(timeout=processes.LEAVING_SECONDS)
    assert process.returncode == 128 + number
    assert errors.endswith(f"{number.name}: stopped. Start again to go on from here.\n")


@pytest.mark.processes
def test_a_preparation_whose_terminal_is_gone_leaves_too(make, tmp_path):
    process = start_a_long_training(write_config(make(), tmp_path / "run.json"))
    process.stderr.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(processes.LEAVING_SECONDS) == 128 + signal.SIGTERM
    process.stdout.close()


@pytest.mark.processes
def test_a_preparation_killed_in_every_step_ends_with_the_same_store(large, whole, tmp_path):
    config_file = write_config(large_config(large, tmp_path / "stores", num_workers=2), tmp_path / "run.json")
    work = tmp_path / "stores" / f".{whole.name}.work"

    for step in STEPS:
        assert kill_as_soon_as(lambda step=step: any(work.glob(step)), config_file), f"the preparation ended before {step} was seen"
        assert any(work.glob(step))
        assert not (tmp_path / "stores" / whole.name).exists()

    assert contents(prepare(large_config(large, tmp_path / "stores"))) == contents(whole)


def num_files(folder):
    return sum(len(names) for _, _, names in os.walk(folder))  # Unlike a glob, it does not mind that files go as it looks.


@pytest.mark.slow
def test_a_preparation_killed_again_and_again_as_soon_as_something_was_done_ends_with_the_same_store(large, whole, tmp_path):
    """Twenty kills, each when so many files more are there than at the start, whatever they are."""
    config_file = write_config(large_config(large, tmp_path / "stores", num_workers=2), tmp_path / "run.json")
    store_folder = tmp_path / "stores" / whole.name
    work = store_folder.with_name(f".{whole.name}.work")
    draw = np.random.default_rng(20)

    done = 0
    while done < 20:
        enough = num_files(work) + int(draw.integers(1, 12))
        if kill_as_soon_as(lambda enough=enough: num_files(work) >= enough, config_file):
            done += 1
        else:
            assert contents(store_folder) == contents(whole)
            shutil.rmtree(store_folder)

    assert contents(prepare(large_config(large, tmp_path / "stores"))) == contents(whole)


@pytest.mark.processes
def test_two_preparations_at_once_make_one_store(large, whole, tmp_path):
    config_file = write_config(large_config(large, tmp_path / "stores"), tmp_path / "run.json")
    command = [sys.executable, "-m", "data.prepare", config_file]

    both = [processes.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate() for process in both]

    assert [process.returncode for process in both] == [0, 0]
    assert len({out for out, _ in outputs}) == 1
    assert sum("is up to date" in error for _, error in outputs) == 1
