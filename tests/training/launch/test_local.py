"""`./run_pretrain.sh` as a person uses it: first run, second run, Ctrl-C, the quickstart itself."""

import errno
import json
import os
import shlex
import shutil
import signal
import socket

import pytest

import ds_configs
from data.documents import DataError
from data.prepare import way_on
from tests import processes
from tests.training.checkpoint_files import write_checkpoint
from training.checkpoints import find_and_verify
from training.config import resolve
from training.launch import local
from training.launch.local import PORTS, PORTS_TRIED, _prepare, free_port, show
from training.run_folder.progress import read_results

pytestmark = pytest.mark.distributed


def test_a_first_run_prepares_trains_and_writes_and_a_second_one_says_it_is_finished(make_run, person):
    run = make_run(training__sample_prompt="春眠不觉晓，", training__sample_tokens=30)
    shutil.rmtree(json.loads(run.config.read_text(encoding="utf-8"))["data"]["directory"])  # A person has no token store yet.
    done = person(str(run.config))
    assert done.returncode == 0, done.stderr
    assert "is finished: step 8." in done.stdout
    assert "bits per character" in done.stdout
    assert "and training.sample_tokens = 30, in 32 positions of the model: passages have the first " in done.stderr
    passage = done.stdout.split("A passage it writes:")[1].split("Next, in ")[0].strip()
    prompt = "春眠不觉晓，"
    assert passage.startswith(prompt)
    assert len(passage) > len(prompt), "it wrote something"
    assert "-m tensorboard.main --logdir" in done.stdout
    assert "training.steps=16" in done.stdout
    sample = (run.folder / "samples/step00000008.txt").read_text(encoding="utf-8").strip()
    assert sample.startswith(prompt)
    assert len(sample) > len(prompt)
    assert list((run.folder / "tensorboard").glob("events*"))

    (run.folder / "results.json").write_text("{", encoding="utf-8")  # The checkpoint has the figures too.
    again = person(str(run.config), "tensorboard.enabled=false")
    assert again.returncode == 0
    assert "was finished before: step 8." in again.stdout
    assert "bits per character" in again.stdout
    assert "processes on" not in again.stderr, "no ranks were launched"
    assert "tensorboard.main" not in again.stdout, "there is nothing to see"

    (run.folder / "checkpoints/step00000008/manifest.json").write_text("{", encoding="utf-8")
    damaged = person(str(run.config))
    assert damaged.returncode == 2
    assert len(damaged.stderr.splitlines()) == 1
    assert "manifest.json: is not the manifest of a checkpoint. If all hosts see it so, remove that checkpoint" in damaged.stderr


@pytest.mark.parametrize(("code", "said"), [(1, True), (2, False), (143, True)])
def test_the_same_command_is_said_to_go_on_except_after_a_mistake(make_run, monkeypatch, capsys, code, said):
    run = make_run()
    write_checkpoint(run.folder, 2)
    monkeypatch.setattr(local, "run_to_the_end", lambda *arguments: (code, False))
    assert local.launch(resolve(ds_configs.load(run.config)), [str(run.config)]) == code
    assert ("The same command goes on from the last checkpoint" in capsys.readouterr().err) == said


def test_ctrl_c_saves_and_the_same_command_goes_on(make_run):
    run = make_run(training__steps=100000, training__save_interval_steps=100000, training__eval_interval_steps=100000)
    run.start_as_a_person_does()
    run.wait_for(lambda: len(run.curve()) >= 5, "step 5")
    os.killpg(run.process.pid, signal.SIGINT)  # The terminal sends it to the whole group.
    code, output = run.finish()
    assert code == 130
    assert "which is saved; the same command goes on from there." in output
    assert "Stopped. The same command goes on" in output
    step = max(run.curve())
    assert run.tags() == [f"step{step:08d}"]
    more = run.run(f"training.steps={step + 2}")
    assert f"from step {step} of {step + 2}" in more


def test_a_stop_for_a_file_is_not_called_a_failure(make_run):
    run = make_run(training__steps=100000)
    run.folder.mkdir(parents=True)
    (run.folder / "STOP").touch()
    run.start_as_a_person_does()
    code, output = run.finish()
    assert code == 143
    assert "Stopped. The same command goes on from the last checkpoint" in output
    assert "Failed" not in output


def test_a_run_needs_no_compiler_no_ninja_and_no_git(make_run, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    for variable in ("CC", "CXX", "CUDA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    # Whatever was compiled before on this machine is not found, and whatever is compiled now is.
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "compiled"))
    run = make_run(training__steps=2)
    run.start(OMP_NUM_THREADS="1,1")  # As OpenMP takes it, for nested regions too.
    code, output = run.finish()
    assert code == 0, output
    assert run.tags() == ["step00000002"]
    assert not (tmp_path / "compiled").exists()


def test_a_run_that_would_wait_for_the_lock_of_another_build_is_refused(make_run, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "fused_adam/lock"
    lock.parent.mkdir()
    lock.touch()
    run = make_run(training__steps=2, optimizer={"type": "Muon", "params": {"lr": 0.01}})
    run.start()
    code, output = run.finish()
    assert code == 2
    assert f"{lock}: another start compiles DeepSpeed's optimizer, or was killed while it did." in output
    write_checkpoint(run.folder, 2)
    run.start()
    code, output = run.finish()
    assert code == 0, output
    assert "is finished: step 2 of 2." in output, "which has nothing to compile"


@pytest.mark.network
def test_the_quickstart_learns_the_novel_and_ends_with_a_passage(person, root, tmp_path):
    done = person("ds_configs/quickstart.json", "run.name=short", f"run.directory={tmp_path}", "training.steps=20")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "short/results.json").read_text(encoding="utf-8"))
    assert results["valid/bits_per_char"] < 8.6, "below a unigram model of characters (9.0) after a fifth of the run"
    passage = done.stdout.split("A passage it writes:")[1].split("Next, in ")[0]
    assert len(passage.partition("却说宝玉")[2].strip()) > 10, "it wrote something"
    judged = processes.run(
        [".venv/bin/python", "-m", "inference.evaluate", str(tmp_path / "short"), "--output", str(tmp_path / "out.json")], cwd=root
    )
    assert judged.returncode == 0, judged.stderr
    (section,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["sections"]
    # The run may have scored with bf16 weights, and the export has their fp32 masters: a rounding of 2^-9 of every weight.
    assert section["bits_per_char"] == pytest.approx(results["valid/bits_per_char"], rel=2e-3)


@pytest.mark.slow
@pytest.mark.network
def test_the_whole_quickstart_reaches_7_05_bits_per_character(quickstart):
    results = json.loads((quickstart / "results.json").read_text(encoding="utf-8"))
    assert results["valid/bits_per_char"] <= 7.05
    norms = [json.loads(line).get("optim/grad_norm", 0) for line in (quickstart / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert max(norms[10:]) < 4, "no spike at the end of the warm-up"


def test_a_damaged_store_is_one_line_also_for_a_run_of_so_many_epochs(make_run, tmp_path, person):
    run = make_run(training__steps=None, training__epochs=1)
    store = shutil.copytree(json.loads(run.config.read_text(encoding="utf-8"))["data"]["directory"], tmp_path / "stores")
    for path in store.glob("*/train-00000.bin"):
        path.write_bytes(path.read_bytes()[:-1])
    done = person(str(run.config), f"data.directory={store}")
    assert done.returncode == 2
    assert "train-00000.bin" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("prompt", "begin"), [('-- "$HOME" 说', '--prompt=-- "$HOME" 说'), (None, "--new-document")])
def test_the_commands_at_the_end_can_be_typed_as_they_stand(prompt, begin, make_run, tmp_path, capsys):
    run = make_run(run__directory=str(tmp_path / "my runs"), training__steps=4, training__sample_prompt=prompt)
    config = resolve(ds_configs.load(run.config))
    checkpoint = config.folder / "checkpoints/step00000008"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text('{"step": 8, "files": {}}', encoding="utf-8")
    show(config, read_results(config), ["training.steps=4"], again=True)
    watch, write, longer = (shlex.split(line) for line in capsys.readouterr().out.splitlines()[-3:])
    assert watch[-2:] == ["--logdir", str(tmp_path / "my runs")]
    assert write[-2:] == [str(config.folder), begin]
    assert longer[-1] == "training.steps=16", "four steps are fewer than it has"


def test_the_end_offers_no_text_of_a_model_that_no_folder_can_hold_and_says_why(make_run, capsys):
    run = make_run(model__position="rotary", training__sample_prompt="春")
    show(resolve(ds_configs.load(run.config)), {"step": 8}, [], again=False)
    said = capsys.readouterr().out
    assert "will not read the run: the gpt2 format cannot hold this model: model.position = rotary (it says learned)." in said
    assert "inference.generate runs" not in said
    assert "-m inference.generate" not in said


def test_ranks_meet_at_a_free_port_that_nobody_else_is_given_meanwhile(monkeypatch):
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 10, "starts that come at the same time have different ones"
    assert ports < set(PORTS)
    with socket.create_server(("127.0.0.1", min(ports))):
        monkeypatch.setattr(local, "PORTS", [min(ports)] * PORTS_TRIED)
        assert free_port() > min(ports), "where those are taken, any"


def test_a_checkpoint_that_cannot_be_read_before_a_preparation_is_not_said_to_be_a_part_of_it(make_run, monkeypatch):
    monkeypatch.setattr(find_and_verify, "READ_AGAIN_SECONDS", (0.0, 0.0))
    run = make_run()
    (run.folder / "checkpoints/step00000002/manifest.json").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"manifest\.json cannot be read \(Is a directory\)\. So no older .* elsewhere to do without it\.$"
    ):
        _prepare(resolve(ds_configs.load(run.config)))


def test_a_preparation_that_the_disk_ends_says_how_to_go_on(make_run, tmp_path):
    (tmp_path / "stores").symlink_to(tmp_path / "a disk that is not there")
    run = make_run(data__directory=str(tmp_path / "stores"))
    with pytest.raises(DataError, match=r"File exists: .*\. Mend it and start again: what is done stays done\.$"):
        _prepare(resolve(ds_configs.load(run.config)))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "data/stores/a.bin")
    assert way_on(full) == "the disk is full (data/stores/a.bin). Make room and start again: what is done stays done."
