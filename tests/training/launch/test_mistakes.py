"""Every mistake is one clear line and exit code 2, before a process group exists: torch is not even imported."""

import contextlib
import importlib.util
import os
import socket
import sys
import threading

import pytest

from tests import processes

QUICKSTART = "ds_configs/quickstart.json"


@pytest.fixture
def rank(root, tmp_path):
    """Start one rank as a launcher would; returns (exit code, lines on standard error).

    The other ranks do not exist. Something at the master's port hangs up at once, or this rank would wait a minute to tell them.
    """

    def hang_up():
        with contextlib.suppress(OSError):
            while True:
                door.accept()[0].close()

    def start(*arguments, rank=0, world=2, local=2):
        launched = {"RANK": rank, "LOCAL_RANK": rank % local, "WORLD_SIZE": world, "LOCAL_SIZE": local, "MASTER_ADDR": "127.0.0.1"}
        environment = {**os.environ, **{name: str(value) for name, value in launched.items()}, "MASTER_PORT": str(door.getsockname()[1])}
        # A rank that got as far as torch would fail on this, with another exit code.
        environment["PYTHONPATH"] = str(no_torch)
        command = [sys.executable, "run_pretrain.sh", "--local_rank=0", *arguments]
        done = processes.run(command, cwd=root, env=environment)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr.strip().splitlines()

    no_torch = tmp_path / "no_torch"
    (no_torch / "torch").mkdir(parents=True)
    (no_torch / "torch" / "__init__.py").write_text("raise SystemExit('torch was imported')", encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as door:
        threading.Thread(target=hang_up, daemon=True).start()
        yield start
        door.shutdown(socket.SHUT_RDWR)  # wakes accept()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("gradient_cliping=1.0", 'unknown key "gradient_cliping". Did you mean "gradient_clipping"?'),
        ("optimizer.params.beta=[0.9,0.95]", 'Did you mean "betas"?'),
        ("zero_optimization.stag=1", 'Did you mean "stage"?'),
        ("training.step=3", 'unknown key "training.step". Did you mean "steps"?'),
        ("pipeline.stages=two", "pipeline.stages"),
        ("train_micro_batch_size_per_gpu=true", "train_micro_batch_size_per_gpu"),
        ("training.log_interval_steps=0", "training.log_interval_steps = 0; it must be an integer of 1 or more."),
        ("training.watchdog_seconds=1", "training.watchdog_seconds = 1; it must be 5 or more"),
        ("training.peak_tflops_per_device=0", "peak_tflops_per_device = 0.0; it must be more than 0, or null to measure it."),
        ("run.seed=-1", "run.seed = -1; it must be 0 or more and below 2**63."),
        ("training.epochs=2", "steps and epochs given; exactly one says how long to train"),
        ("zero_optimization.stage=0", "zero_optimization.stage = 0; it must be 1."),
        ("fp16.enabled=true", '"fp16" cannot be set: pipelines here train in bf16 or fp32.'),
        ("data_types.grad_accum_dtype=bf16", "it must be"),
        ("data.seq_length=512", "longer than model.max_seq_length = 256"),
        ("data.tokenizer.vocab_size=6000", "does not fit model.vocab_size = 5000"),
        ("model.num_heads=5", "does not divide"),
        ("scheduler.params.total_num_steps=9", "total_num_steps"),
        ("pipeline.partition=type:Rotary", '"type:Rotary" matches no layer. The classes are TokenEmbedding, PositionEmbedding, Attention'),
        ("pipeline.stages=20", "the model has only 12 layers"),
        ("train_batch_size=30", "30 cannot be split"),
    ],
)
def test_a_wrong_value_is_named_with_what_to_do_in_one_line_and_leaves_no_folder(rank, tmp_path, override, said):
    world = 20 if override == "pipeline.stages=20" else 2
    code, lines = rank(QUICKSTART, override, "run.name=mistake", f"run.directory={tmp_path / 'runs'}", world=world, local=world)
    assert code == 2
    assert len(lines) == 1, lines
    assert said in lines[0]
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_package_that_is_asked_for_and_missing_is_said_before_the_rank_meets_others(rank, tmp_path):
    code, lines = rank(QUICKSTART, "wandb.enabled=true", "run.name=mistake", f"run.directory={tmp_path / 'runs'}")
    assert code == 2
    assert len(lines) == 1, lines
    assert (
        "wandb.enabled = true, but wandb is not installed. Install it (.venv/bin/python -m pip install wandb) or set it false." in lines[0]
    )


def test_an_optimizer_that_deepspeed_refuses_later_is_refused_here(rank):
    without = [f"optimizer.params.{name}=null" for name in ("betas", "eps", "torch_adam")]
    code, lines = rank("ds_configs/poetry_gpt2_26m.json", "run.name=mistake", "optimizer.type=SGD", *without)
    assert code == 2
    assert 'Set "zero_allow_untested_optimizer": true to use it.' in lines[0]


def test_mistakes_in_several_sections_are_reported_together_and_by_rank_0_only(rank):
    overrides = ["model.num_layrs=3", "training.stepz=3", "optimizer.params.lr=fast", "run.name=mistake"]
    code, lines = rank(QUICKSTART, *overrides)
    assert code == 2
    assert len(lines) == 3
    assert rank(QUICKSTART, *overrides, rank=1) == (2, [])


def test_a_missing_file_and_broken_json_are_placed(rank, tmp_path):
    code, lines = rank("ds_configs/quikstart.json")
    assert (code, lines) == (2, ["ds_configs/quikstart.json: no such file. Did you mean ds_configs/quickstart.json?"])
    broken = tmp_path / "broken.json"
    broken.write_text('{\n  "training": {"steps": 3,}\n}\n', encoding="utf-8")
    code, lines = rank(str(broken))
    assert code == 2
    assert len(lines) == 1
    assert f"{broken}:2" in lines[0]


def test_the_reference_run_refuses_any_world_but_its_own_with_the_arithmetic(rank):
    # What happens when the hostfile was not found: DeepSpeed starts locally.
    code, lines = rank(world=6, local=6)
    assert (code, len(lines)) == (2, 1)
    assert "32 pipelines of 6 stages = 192 ranks, but 6 ranks were started (1 pipelines). Was the hostfile found?" in lines[0]
    assert "gradient_accumulation_steps=null keeps the global batch" in lines[0]


@pytest.mark.parametrize(("world", "local", "said"), [(5, 5, "need a multiple of 6 ranks"), (12, 4, "a pipeline would lie across hosts")])
def test_slots_that_do_not_fit_the_stages_are_refused(rank, world, local, said):
    code, lines = rank("ds_configs/hongloumeng_500m.json", "gradient_accumulation_steps=null", world=world, local=local)
    assert (code, len(lines)) == (2, 1)
    assert said in lines[0]


def test_a_rank_that_finds_no_token_store_names_the_command_that_makes_it(rank, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("春眠不觉晓。" * 200, encoding="utf-8")
    own = ["data.corpus=null", f"data.path={text}", f"data.directory={tmp_path}"]
    code, lines = rank(QUICKSTART, "run.name=mistake", *own, f"run.directory={tmp_path / 'runs'}")
    assert (code, len(lines)) == (2, 1)
    assert f"-m data.prepare {QUICKSTART}" in lines[0]
    assert not (tmp_path / "runs").exists()


def test_a_disk_that_cannot_hold_two_checkpoints_is_refused_at_the_start(rank, tmp_path):
    code, lines = rank(
        QUICKSTART, "run.name=mistake", "model.num_layers=100000", "model.hidden_size=8192", f"run.directory={tmp_path / 'runs'}"
    )
    assert (code, len(lines)) == (2, 1)
    assert not (tmp_path / "runs").exists()
    assert "GB free, but a checkpoint of this model takes" in lines[0]


@pytest.mark.parametrize("directory", ["/proc/runs", "/etc/hostname"], ids=["read-only", "a file"])
def test_a_folder_that_cannot_be_written_is_one_line(rank, directory):
    code, lines = rank(QUICKSTART, "run.name=mistake", f"run.directory={directory}")
    assert code == 2
    assert len(lines) == 1
    assert f"the run's folder {directory}/mistake cannot be written (" in lines[0]
    assert "Set run.directory to one that can." in lines[0]


def test_a_person_who_starts_a_run_of_a_cluster_on_one_machine_is_told_how_to(root, tmp_path):
    # A thousand times the reference run, which no machine holds: one with many cores would start the reference run itself.
    overrides = ["train_batch_size=768000", "run.name=mistake", f"run.directory={tmp_path / 'runs'}"]
    done = processes.run([sys.executable, "run_pretrain.sh", "ds_configs/hongloumeng_500m.json", *overrides], cwd=root)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "32000 pipelines of 6 stages = 192000 ranks; this machine has" in done.stderr
    assert "train_batch_size=24" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ({"RANK": "0"}, "If no launcher started this: unset RANK."),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, "If no launcher started it: unset RANK, PMI_RANK or what else says that one did."),
    ],
)
def test_a_person_in_whose_shell_a_launchers_variables_are_left_is_told_to_unset_them(root, left, said):
    done = processes.run([sys.executable, "run_pretrain.sh", QUICKSTART], cwd=root, env={**os.environ, **left})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith(said)


@pytest.mark.distributed
def test_a_device_that_is_not_here_is_a_mistake_and_no_failure(make_run, root):
    run = make_run(pipeline__stages=1)
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "gpu"}
    done = processes.run([sys.executable, "run_pretrain.sh", str(run.config)], cwd=root, env=environment)
    assert done.returncode == 2, "which a supervisor does not try again"
    assert done.stderr == 'DS_ACCELERATOR = "gpu"; this project runs on xpu, cuda or cpu. Set one of these, or unset it.\n'
    assert not run.folder.exists()


@pytest.mark.distributed
def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_samples(make_run):
    run = make_run(training__steps=6, training__log_interval_steps=2, optimizer__params__lr=1e30, gradient_clipping=0.0)
    run.start()
    code, output = run.finish()
    assert code == 1
    assert "step 3: loss" in output or "step 2: loss" in output
    assert "on samples" in output
    assert 'set training.non_finite to "skip"' in output


def test_the_stamp_of_the_environment_covers_included_files(root):
    from training.make_venv import stamp_of

    assert set(stamp_of(["requirements.txt"]).split()) < set(stamp_of(["requirements-dev.txt"]).split())
