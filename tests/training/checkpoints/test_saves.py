"""What a save goes through when something fails in it, and what is left of old ones."""

import errno
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum

from tests import processes
from training.checkpoints.find_and_verify import LATEST, Checkpoint, newest_good, published, step_of
from training.checkpoints.load import load_checkpoint
from training.checkpoints.save import Saver, Saving, prune
from training.checkpoints.snapshot import load_random_state, random_state, random_state_file, read_file, write_random_state
from training.launch.process_group import Ranks
from training.launch.world import World


@pytest.mark.distributed
def test_a_rank_that_cannot_write_fails_the_save_for_all_and_nobody_waits(make_run):
    run = make_run(training__steps=100000, training__save_interval_steps=100000, training__eval_interval_steps=100000)
    run.start()
    run.wait_for(lambda: len(run.curve()) >= 2, "step 2")
    # From here on the first file of rank 1, its random state, fails as on a full disk, before DeepSpeed's collectives.
    subprocess.run(["prlimit", "--fsize=100", f"--pid={run.rank_process(1)}"], check=True)
    os.kill(run.rank_process(0), signal.SIGTERM)
    code, output = run.finish()
    assert code == 1
    assert output.count("was not saved: rank 1: RuntimeError") + output.count("was not saved: rank 1: OSError") == 1
    assert output.count("could not be saved; see the lines above.") == 1, "said by one rank"
    assert run.tags() == []


@pytest.mark.distributed
def test_a_folder_that_cannot_be_made_fails_every_save_and_a_curve_that_cannot_be_written_fails_nothing(make_run):
    run = make_run(training__steps=4, training__sample_tokens=4)
    run.folder.mkdir(parents=True)
    for name in ("checkpoints", "tensorboard", "samples"):
        (run.folder / name).touch()
    run.start()
    code, output = run.finish()
    assert code == 1, output
    assert output.count("was not saved: rank 0: FileExistsError") + output.count("was not saved: rank 0: NotADirectoryError") == 2
    assert output.count("could not be saved; see the lines above.") == 1
    assert "TCPStore" not in output, "ranks that fail with rank 0 do not ask its store, which is gone, for what to say"
    assert output.count("Training goes on; later writes try again.") == 2
    assert sorted(run.curve()) == [1, 2, 3, 4]


@pytest.mark.distributed
def test_an_error_on_one_rank_is_said_by_it_and_by_nobody_else(make_run):
    run = make_run()
    run.start(fault="lose data")
    code, output = run.finish()
    assert code == 1
    line = "rank 1 of 2: OSError: [Errno 5] Input/output error: 'data/stores/verse'"
    assert output.count(line) == 1
    assert " of 2: " not in output.replace(line, ""), "rank 0, which lost its peer, adds nothing"
    assert run.tags() == ["step00000002"]


@pytest.mark.distributed
def test_training_goes_on_beside_a_save_and_says_when_it_has_to_wait_for_one(make_run):
    run = make_run(training__steps=4, training__eval_interval_steps=1000)
    run.start(fault="slow disk")
    code, output = run.finish()
    assert code == 0, output
    assert output.index("step 3/4 | loss") < output.index("step 2/4 | saved") < output.index("step 4/4 | saved")
    assert output.count("s for the save before this one") == 1
    assert run.tags() == ["step00000002", "step00000004"]


@pytest.mark.distributed
def test_saves_behind_the_training_hold_what_saves_hold_that_are_waited_for(make_run):
    behind, waited_for = (make_run(training__async_save=setting, training__eval_interval_steps=1000) for setting in (True, False))
    for run in (behind, waited_for):
        run.run()
    assert behind.curve() == waited_for.curve()
    assert behind.tags() == waited_for.tags() == [f"step{step:08d}" for step in (2, 4, 6, 8)]
    for path in waited_for.folder.glob("checkpoints/*/*.pt"):
        other = behind.folder / path.relative_to(waited_for.folder)
        assert path.stat().st_size == pytest.approx(other.stat().st_size, abs=200), "pickle names objects that are one object only once"
        held, expected = (torch.load(file, weights_only=False) for file in (other, path))  # Our own files.
        assert leaves(held) == leaves(expected)


def leaves(item):
    """Everything in lists, tuples and dicts, as strings or bytes, with the keys that lead there."""
    if isinstance(item, (dict, list, tuple)):
        pairs = item.items() if isinstance(item, dict) else enumerate(item)
        return {f"{key}.{path}": leaf for key, value in pairs for path, leaf in leaves(value).items()}
    return {"": item.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if isinstance(item, torch.Tensor) else str(item)}


@pytest.mark.slow  # Writes some 10 GB. Medians of one run, both kinds of saves in turns.
@pytest.mark.distributed
def test_training_waits_less_than_a_tenth_of_a_save_that_is_behind_it(root, tmp_path):
    command = [sys.executable, "benchmarks/saves.py", "--folder", str(tmp_path)]
    done = processes.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stderr
    (share,) = re.findall(r"training waits ([\d.]+)% of", done.stdout)
    assert float(share) < 10, done.stdout


@pytest.mark.slow  # Some twenty starts.
@pytest.mark.distributed
@pytest.mark.parametrize("in_background", [True, False])
def test_a_kill_before_every_single_write_of_a_save_leaves_a_good_checkpoint_to_go_on_from(make_run, root, in_background):
    changes = {
        "training__async_save": in_background,
        "pipeline__stages": 1,
        "scheduler__type": "WarmupLR",
        "scheduler__params": {"warmup_num_steps": 2, "warmup_type": "linear", "warmup_max_lr": 0.01},
        "training__steps": 1000,
        "training__keep_checkpoints": 1,
        "training__eval_interval_steps": 1000,
        "training__sample_tokens": 0,
    }
    run, whole = make_run(**changes), make_run(**{**changes, "training__save_interval_steps": 1000})
    killer = [sys.executable, "tests/training/kill_in_saves.py", str(run.config)]
    done = processes.run(killer, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout.splitlines()[-1])
    # In this order a checkpoint comes to be, and the one before it goes. torch opens the tensors' files in C++, where nothing is seen of
    # them: kills lie before the first and behind the last of those.
    expected = (
        "os.mkdir STEP",
        "open random_state_rank00000.pt",
        "fsync",
        "open .manifest.json.tmp",
        "os.rename .manifest.json.tmp",
        "open .latest.tmp",
        "os.rename .latest.tmp",
        "os.remove random_state_rank00000.pt",
        "os.rmdir STEP",
    )
    assert not [part for part in expected if not any(part in operation for operation in kills)], kills
    places = [next(place for place, operation in enumerate(kills) if part in operation) for part in expected]
    assert places == sorted(places)
    last = newest_good(run.folder)
    assert (run.folder / "checkpoints" / LATEST).read_text(encoding="utf-8") in [folder.name for folder in published(run.folder)]
    output = run.run(f"training.steps={last.step + 2}", ranks=1)
    assert f"from step {last.step} of" in output
    whole.run(f"training.steps={last.step + 2}", ranks=1)
    assert run.curve() == whole.curve()  # Exact, through all kills.
    assert run.tags() == [f"step{last.step + 2:08d}"], "keep_checkpoints is 1"


def checkpoint(folder, name, *, complete=True):
    (folder / name).mkdir(parents=True)
    if complete:
        (folder / name / "manifest.json").write_text(json.dumps({"step": step_of(name) or 0, "files": {}}), encoding="utf-8")


def test_old_checkpoints_go_and_what_people_put_there_stays(tmp_path):
    ours = [f"step{step:08d}" for step in (100, 200, 300, 123456789)]
    folder = tmp_path / "checkpoints"
    for name in ours:
        checkpoint(folder, name)
    checkpoint(folder, "step00000400", complete=False)  # an interrupted save
    checkpoint(folder, "universal_step00000300", complete=False)
    theirs = ["step00000100_best", "best", "stepping", "step12"]
    for name in theirs:
        checkpoint(folder, name)
    (folder / "notes.txt").touch()
    (folder / LATEST).write_text("step00000300", encoding="utf-8")
    (folder / f".{LATEST}.alpha.17.tmp").touch()  # of a process that was killed
    assert [path.name for path in published(tmp_path)] == ["step123456789", "step00000300", "step00000200", "step00000100"]
    prune(tmp_path, 2, 123456789)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*theirs, "notes.txt", LATEST, "step123456789", "step00000300"])


def test_a_folder_whose_names_cannot_be_read_behind_a_save_is_said_and_the_save_too(tmp_path, monkeypatch, caplog):
    def listed(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    folder = tmp_path / "checkpoints/step00000100"
    folder.mkdir(parents=True)
    said = []
    world = World(rank=0, local_rank=0, size=1, local_size=1, master_addr="localhost", master_port=1)
    saver = Saver(Ranks(world=world, replica=0, stage=0, replicas=1, stages=1), tmp_path, keep=1, copy=False, say=said.append)
    monkeypatch.setattr("os.listdir", listed)
    saving = Saving(100, folder, {"files": {}}, 0.0)
    saver._publish(saving, [{"files": {}, "problem": None}])
    assert said == [saving]
    assert "older checkpoints were not removed: " in caplog.text
    assert os.strerror(errno.EIO) in caplog.text


def test_a_damaged_checkpoint_of_a_later_step_takes_no_good_ones_place(tmp_path):
    for step in (100, 150, 200):  # That of step 200 was damaged: the run went on from step 100, and has just saved step 150.
        checkpoint(tmp_path / "checkpoints", f"step{step:08d}")
    prune(tmp_path, 1, 150)
    assert [path.name for path in published(tmp_path)] == ["step00000150"]


def test_a_copy_of_a_checkpoint_beside_the_others_disturbs_neither_start_nor_end(make_run, root):
    from ds_configs import load
    from training.config import resolve
    from training.run_folder.progress import finished_step

    run = make_run()
    config = resolve(load(run.config))
    checkpoint(run.folder / "checkpoints", "step00000100_best")
    assert not published(run.folder)
    assert finished_step(config, 8) is None
    checkpoint(run.folder / "checkpoints", "step00000008")
    assert finished_step(config, 8) == 8


def draws():
    return torch.rand(4).tolist(), random.random(), np.random.rand()


@pytest.fixture
def _same_state_afterwards():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    yield
    torch.set_rng_state(before[0])
    random.setstate(before[1])
    np.random.set_state(before[2])


@pytest.mark.usefixtures("_same_state_afterwards")
def test_the_random_state_comes_back_also_from_a_file_of_version_0_1(tmp_path):
    write_random_state(tmp_path, 0, random_state())
    old = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": np.random.get_state(), "device": None}
    torch.save(old, tmp_path / random_state_file(1))
    expected = draws()
    for rank in (0, 1):
        draws()
        load_random_state(tmp_path, rank)
        assert draws() == expected


class Harm:
    """What a stranger's file may ask pickle to do."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_random_state_that_would_run_something_is_not_loaded(tmp_path):
    torch.save({"torch": Harm(tmp_path / "ran")}, tmp_path / random_state_file(0))
    with pytest.raises(ValueError, match=r"random_state_rank00000\.pt holds something else than the state of a run"):
        load_random_state(tmp_path, 0)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Harm(tmp_path / "ran")))
    assert (tmp_path / "ran").exists(), "unpickled, such a file does what it says"


class Attribute:
    """Saved as Python 3.11.0 to 3.11.3 save the member of an enum."""

    def __init__(self, owner, name):
        self.asked = owner, name

    def __reduce__(self):
        return getattr, self.asked


@pytest.mark.parametrize("stage", [ZeroStageEnum.optimizer_states, Attribute(ZeroStageEnum, "optimizer_states")], ids=["today", "3.11.2"])
def test_what_an_fp32_run_of_version_0_1_saved_is_read(stage, tmp_path):
    torch.save({"loss_scaler": LossScaler(scale=1), "zero_stage": stage}, tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert read_file(tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt")["zero_stage"] == 1


@pytest.mark.parametrize("asked", [(LossScaler, "backward"), (ZeroStageEnum, "mro")])
def test_no_other_attribute_is_taken_from_a_checkpoint(asked, tmp_path):
    torch.save({"zero_stage": Attribute(*asked)}, tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with pytest.raises(ValueError, match="holds something else than the state of a run"):
        read_file(tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt")


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_a_checkpoint_that_would_run_something_is_not_loaded(tmp_path, name):
    torch.save({"global_steps": 1, "global_samples": 8, "skipped_steps": 0}, tmp_path / "mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": Harm(tmp_path / "ran")}, tmp_path / name)
    world = World(rank=0, local_rank=0, size=1, local_size=1, master_addr="localhost", master_port=1)
    ranks = Ranks(world=world, replica=0, stage=0, replicas=1, stages=1)
    optimizer = SimpleNamespace(bf16_groups=[], fp32_groups_flat_partition=[], param_names={})
    engine = SimpleNamespace(module=SimpleNamespace(parts=[0, 5]), optimizer=optimizer, lr_scheduler=None)
    checkpoint = Checkpoint(
        tmp_path, 1, "", {"topology": ranks.topology, "partition": [0, 5], "files": {"mp_rank_00_model_states.pt": {}, name: {}}}
    )
    with pytest.raises(RuntimeError, match=f"could not be loaded: ValueError: {name} holds something else than the state of a run"):
        load_checkpoint(engine, ranks, checkpoint)
    assert not (tmp_path / "ran").exists()
