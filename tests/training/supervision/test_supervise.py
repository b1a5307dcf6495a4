"""`python -m training.supervise -- ./run_pretrain.sh CONFIG`: a run that fails is started again, and one that is hopeless is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes
from training.supervision import leftovers
from training.supervision.job import Job

pytestmark = pytest.mark.distributed
OPTIONS = ("--delay-seconds", "0.2")
# A run that has written no sample ends without a passage, which another process would write.
NO_SAMPLES = {"training__sample_tokens": 0}


class Supervised:
    """A tiny run under a supervisor."""

    def __init__(self, run, *overrides, options=OPTIONS, before=()):
        self.run = run
        command = [sys.executable, "-m", "training.supervise", *options, "--", *before, "./run_pretrain.sh", str(run.config), *overrides]
        run.start_command(command, OMP_NUM_THREADS="1")

    def finish(self):
        return self.run.finish()

    def ranks(self):
        below = processes.descendants(self.run.process.pid)
        return [process for process in below if "--local_rank" in processes.command_line(process)]

    def events(self):
        path = self.run.folder / "supervisor/log.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def wait_for_tag(self, number):
        self.run.wait_for(lambda: len(self.run.tags()) >= number, f"{number} checkpoints")


@pytest.fixture(scope="module")
def undisturbed(make_run):
    run = make_run(**NO_SAMPLES)
    run.run()
    return run


@pytest.fixture(scope="module")
def survivor(make_run):
    """A run of which a rank is killed twice, each time after a save."""
    run = make_run(**NO_SAMPLES)
    supervised = Supervised(run)
    for number in (1, 2):
        supervised.wait_for_tag(number)
        run.wait_for(lambda: len(supervised.ranks()) == 2, "both ranks")
        os.kill(supervised.ranks()[-1], signal.SIGKILL)
        run.wait_for(lambda number=number: sum(one["event"] == "failed" for one in supervised.events()) >= number, "the failure")
    code, output = supervised.finish()
    return supervised, code, output


def test_a_run_whose_ranks_are_killed_is_finished_and_equals_an_undisturbed_one(survivor, undisturbed):
    supervised, code, output = survivor
    assert code == 0, output
    assert supervised.run.curve() == undisturbed.curve()


def test_every_restart_is_written_down_with_its_cause(survivor):
    events = survivor[0].events()
    assert [one["event"] for one in events if one["event"] != "waiting"] == [
        "started",
        "failed",
        "started",
        "failed",
        "started",
        "finished",
    ]
    assert all(one["cause"] and one["exit_code"] for one in events if one["event"] == "failed")
    steps = [one["step"] for one in events if one["event"] == "started"]
    assert steps[0] == 0
    assert steps == sorted(steps)
    assert steps[-1] >= 2


def test_a_crash_loop_ends_with_its_reason(make_run):
    run = make_run()
    # No file may grow beyond what a checkpoint needs, so nothing is ever saved and the last save fails the run.
    supervised = Supervised(run, "training.steps=2", options=(*OPTIONS, "--tries", "2"), before=("prlimit", "--fsize=60000"))
    code, output = supervised.finish()
    assert code == 1
    assert [one["event"] for one in supervised.events() if one["event"] != "waiting"] == [
        "started",
        "failed",
        "started",
        "failed",
        "gave up",
    ]
    assert "2 failures in a row without a new checkpoint" in supervised.events()[-1]["why"]
    assert "could not be saved" in output


def test_what_has_begun_once_is_tried_again_also_after_exit_code_2_as_of_a_disk_that_cannot_be_read_for_a_while(make_run, tmp_path):
    launcher, begun = tmp_path / "deepspeed", tmp_path / "begun"
    lines = f"[ -e {begun} ] && exit 2\ntouch {begun}\necho pipeline 0: ranks 0-1 on here\nexit 1\n"
    launcher.write_text(f"#!/bin/sh\n{lines}", encoding="utf-8")
    launcher.chmod(0o755)
    run = make_run()
    run.start_command([sys.executable, "-m", "training.supervise", *OPTIONS, "--", str(launcher), "run_pretrain.sh", str(run.config)])
    code, output = run.finish()
    assert code == 2
    assert "3 failures in a row without a new checkpoint" in output


def test_a_first_start_that_cannot_read_a_checkpoint_for_a_while_is_tried_again(make_run, tmp_path):
    run = make_run()
    launcher, manifest, again = tmp_path / "deepspeed", run.folder / "checkpoints/step00000002/manifest.json", tmp_path / "again"
    start = f"DS_ACCELERATOR=cpu ./run_pretrain.sh {run.config} training.steps=2"
    launcher.write_text(f"#!/bin/sh\n[ -e {again} ] && exit 0\ntouch {again}\n{start}\n", encoding="utf-8")
    launcher.chmod(0o755)
    manifest.mkdir(parents=True)  # A read of it fails, and its size and time are told.
    run.start_command([sys.executable, "-m", "training.supervise", *OPTIONS, "--", str(launcher), "run_pretrain.sh", str(run.config)])
    code, output = run.finish()
    assert code == 0, output
    assert "supervise: failed: step 2, exit code 2, cause " in output


def test_a_supervisor_outlives_a_disk_that_is_gone_when_a_start_ends(make_run, tmp_path):
    run = make_run()
    launcher, checkpoints = tmp_path / "deepspeed", run.folder / "checkpoints"
    # A link to a name that is too long: it cannot be looked into, whoever asks.
    gone = f"[ -h {checkpoints} ] && {{ rm {checkpoints}; exit 0; }}\nln -s {'x' * 300} {checkpoints}\nexit 1\n"
    launcher.write_text(f"#!/bin/sh\n{gone}", encoding="utf-8")
    launcher.chmod(0o755)
    run.start_command([sys.executable, "-m", "training.supervise", *OPTIONS, "--", str(launcher), "run_pretrain.sh", str(run.config)])
    code, output = run.finish()
    assert code == 0, output
    assert "supervise: failed: step 0, exit code 1" in output


def test_a_stop_is_passed_on_saved_and_not_restarted(make_run):
    run = make_run(training__steps=1_000_000, training__save_interval_steps=1_000_000)
    supervised = Supervised(run)
    run.wait_for(lambda: any(record["step"] >= 2 for record in run.records()), "step 2")
    os.kill(run.process.pid, signal.SIGTERM)
    code, output = supervised.finish()
    assert code == 128 + signal.SIGTERM, output
    assert len(run.tags()) == 1
    assert supervised.events()[-1]["event"] == "stopped"


def test_a_stop_while_hosts_are_asked_whether_they_answer_is_not_lost(make_run, tmp_path):
    slow, launcher, hostfile, asked = (tmp_path / name for name in ("ssh", "deepspeed", "hosts", "asked"))
    not_of_leftovers = 'case "$*" in *leftovers*) exit 255;; esac'
    second_time = f"[ -e {asked} ] && touch {asked}.again && sleep 5; touch {asked}"
    slow.write_text(f"#!/bin/sh\n{not_of_leftovers}\n{second_time}\nexit 255\n", encoding="utf-8")
    launcher.write_text("#!/bin/sh\nsleep 1\nexit 1\n", encoding="utf-8")
    for script in (slow, launcher):
        script.chmod(0o755)
    hostfile.write_text("localhost slots=2\n# spare: far slots=2\n", encoding="utf-8")
    run = make_run()
    command = [sys.executable, "-m", "training.supervise", *OPTIONS, "--", str(launcher), "--hostfile", str(hostfile)]
    run.start_command([*command, "run_pretrain.sh", str(run.config)], PATH=f"{tmp_path}:{os.environ['PATH']}")
    run.wait_for((tmp_path / "asked.again").exists, "the question before the second start")
    os.kill(run.process.pid, signal.SIGTERM)
    code, output = run.finish()
    assert code == 128 + signal.SIGTERM, output
    events = [line.split(":")[1].strip() for line in output.splitlines() if line.startswith("supervise: ")]
    assert [event for event in events if event != "hosts"] == ["started", "failed", "waiting", "stopped"]


def test_after_a_killed_supervisor_the_next_ends_what_is_left_and_goes_on(make_run, undisturbed):
    run = make_run(**NO_SAMPLES)
    supervised = Supervised(run)
    supervised.wait_for_tag(1)
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.communicate()
    again = Supervised(run)
    code, output = again.finish()
    assert code == 0, output
    assert run.curve() == undisturbed.curve()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["./run_pretrain.sh", "CONFIG", "modl.num_layers=3"], 'unknown key "modl"'),
        (["./run_pretrain.sh", "CONFIG", "run.name=other", "data.path=nowhere.txt"], "a restart would not help"),
        (
            [str(Path(sys.executable).with_name("deepspeed")), "--hostfile", "nowhere", "run_pretrain.sh", "CONFIG"],
            "nowhere: No such file or directory",
        ),
        (["sh", "train.py"], "starts no run_pretrain.sh"),
        (["deepspeeed", "run_pretrain.sh", "CONFIG"], "deepspeeed: no such command here, or it may not be run."),
        ([], "no command"),
    ],
)
def test_a_mistake_is_not_tried_again_and_leaves_no_folder(make_run, root, words, said):
    run = make_run()
    words = [str(run.config) if word == "CONFIG" else word for word in words]
    done = processes.run([sys.executable, "-m", "training.supervise", *OPTIONS, "--", *words], cwd=root)
    assert done.returncode == 2
    assert said in done.stderr
    assert not run.folder.parent.exists() or not list(run.folder.parent.iterdir())


def test_two_supervisors_of_one_run_are_one_too_many(make_run, root):
    run = make_run(training__steps=1_000_000)
    first = Supervised(run)
    run.wait_for(lambda: bool(first.events()), "the first start")
    command = [sys.executable, "-m", "training.supervise", "--", "./run_pretrain.sh", str(run.config)]
    done = processes.run(command, cwd=root, stderr=subprocess.STDOUT)
    assert done.returncode == 2
    assert "another start of this run is going on" in done.stdout
    run.stop()


def test_with_fewer_hosts_the_hostfile_is_replaced_and_the_global_batch_kept(tmp_path):
    hostfile = tmp_path / "two"
    hostfile.write_text("a slots=2\nb slots=2\n", encoding="utf-8")
    config = ["ds_configs/quickstart.json", "gradient_accumulation_steps=null"]
    job = Job(["deepspeed", "--ssh_port", "2222", f"--hostfile={hostfile}", "run_pretrain.sh", *config])
    start = ["deepspeed", "--ssh_port", "2222", "--hostfile", str(tmp_path / "next"), "run_pretrain.sh", *config]
    assert job.ssh_port == "2222"
    assert job.command_on(job.pool.wanted, tmp_path / "next") == start
    kept = [f"train_batch_size={job.config.batch.train_batch_size}", "train_micro_batch_size_per_gpu=4", "gradient_accumulation_steps=null"]
    # Of a single host DeepSpeed would start the ranks where it is typed itself.
    start.insert(start.index("run_pretrain.sh"), "--force_multi")
    assert job.command_on(job.pool.wanted[:1], tmp_path / "next") == [*start, *kept]
    assert (tmp_path / "next").read_text(encoding="utf-8") == "a slots=2\n"


QUICKSTART = ["run_pretrain.sh", "ds_configs/quickstart.json", "gradient_accumulation_steps=null"]


def job_on_two_hosts(folder, *options):
    hostfile = folder / "two"
    hostfile.write_text("localhost slots=2\nb slots=2\n# spare: c slots=2\n", encoding="utf-8")
    return Job(["deepspeed", "--hostfile", str(hostfile), *options, *QUICKSTART])


def test_a_single_host_that_is_this_one_is_started_as_deepspeed_does(tmp_path):
    job = job_on_two_hosts(tmp_path, "--ssh_port=2222")
    assert job.ssh_port == "2222"
    assert "--force_multi" not in job.command_on(job.pool.wanted[:1], tmp_path / "next")


def test_the_address_to_meet_at_goes_with_the_first_host_or_the_supervisor_gives_up(tmp_path):
    job = job_on_two_hosts(tmp_path, "--master_addr=localhost")
    first, second, spare = job.pool.all
    assert "localhost" in job.command_on([first, spare], tmp_path / "next")
    command = job.command_on([second, spare], tmp_path / "next")
    assert command[command.index("--master_addr") + 1] == "b"
    job = job_on_two_hosts(tmp_path, "--master_addr", "10.0.0.1")
    with pytest.raises(ValueError, match=r"--master_addr 10.0.0.1 was for localhost, which is left out. Give an address of b,"):
        job.command_on([second, spare], tmp_path / "next")


def test_options_of_deepspeeds_that_choose_hosts_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--exclude=b: the supervisor chooses hosts itself"):
        job_on_two_hosts(tmp_path, "--exclude=b")


@pytest.mark.parametrize("launcher", [[".venv/bin/ds"], ["deepspeed.pt"], [sys.executable, "-m", "deepspeed.launcher.runner"]])
def test_deepspeeds_launcher_is_known_by_all_its_names(tmp_path, launcher):
    (tmp_path / "two").write_text("a slots=2\nb slots=2\n", encoding="utf-8")
    job = Job([*launcher, "--hostfile", str(tmp_path / "two"), *QUICKSTART])
    assert job.pool is not None


@pytest.mark.parametrize("options", [["--hostfile", "nodes"], ["-H", "a:2,b:2"]])
def test_hosts_of_mpiexec_are_its_own_affair(options):
    command = ["mpiexec", "-n", "4", *options, "./run_pretrain.sh", *QUICKSTART[1:]]
    job = Job(command)
    assert job.pool is None
    assert job.command_on([], Path("nowhere")) == command


def test_a_supervisor_is_nothing_left_over_even_if_it_is_asked_over_ssh(root):
    """As where the hostfile has another name for the supervisor's host than the host itself."""
    words = ["CONFIG", "run.name=left_over"]
    sleep = [sys.executable, "-c", "import time; time.sleep(1000)"]
    supervisor = processes.start([*sleep, "-m", "training.supervise", "--", "deepspeed", "run_pretrain.sh", *words], cwd=root)
    rank = processes.start([*sleep, "run_pretrain.sh", "--local_rank=0", *words], cwd=root)
    processes.wait_until(lambda: leftovers.find(words, root) == [rank.pid], "the rank, and nothing else, is found")
    for process in (supervisor, rank):
        processes.end(process)


def test_what_is_left_over_of_a_run_is_not_another_run_of_the_same_configuration(root):
    words = ["CONFIG", "training.steps=3"]
    sleep = [sys.executable, "-c", "import time; time.sleep(1000)", "run_pretrain.sh", "--local_rank=0"]
    more = (["pipeline.stages=1"], ["run.name=other"], ["run.directory=elsewhere"])
    ranks = [processes.start([*sleep, *words, *others], cwd=root) for others in more]
    other = processes.start([*sleep, "OTHER", *words], cwd=root)
    processes.wait_until(lambda: leftovers.find(words, root) == [ranks[0].pid], "its own rank is found")
    processes.wait_until(lambda: leftovers.find([*words, "run.name=other"], root) == [ranks[1].pid], "the other run's is another")
    for process in (*ranks, other):
        processes.end(process)


def test_a_configuration_that_is_not_typed_is_named_so_that_its_processes_are_known():
    job = Job(["./run_pretrain.sh", "training.steps=3"])
    assert job.words == ["ds_configs/quickstart.json", "training.steps=3"]
    assert job.command_on([], Path("nowhere")) == ["./run_pretrain.sh", *job.words]
