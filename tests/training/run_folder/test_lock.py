"""A run's folder belongs to one start at a time, and to nobody as soon as that start has ended, however it ended."""

import fcntl
import os
import socket
import sys
import threading

import pytest

import ds_configs
from ds_configs import ConfigError
from ds_configs.atomic_files import write_json
from tests import processes
from tests.training.checkpoint_files import write_checkpoint
from training.config import resolve
from training.launch.world import World
from training.preflight import preflight
from training.run_folder import lock

HOLDER = """
import sys, time
from pathlib import Path
from training.run_folder.lock import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(3600)
"""


@pytest.fixture
def holder(tmp_path, root):
    process = processes.start([sys.executable, "-c", HOLDER, tmp_path], cwd=root, stdout=-1, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    processes.end(process)
    process.stdout.close()


def test_a_second_holder_is_told_which_process_where_and_since_when(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(lock, "WAIT_SECONDS", 0.2)
    for attempt in (lock.hold, lock.check_free):
        with pytest.raises(ConfigError) as refused:
            attempt(tmp_path)
        (line,) = str(refused.value).splitlines()
        assert f"{tmp_path}: another start of this run is going on: process {holder.pid} on host {socket.gethostname()}, since 20" in line
        assert "run.name=NAME" in line


def test_a_lock_does_not_outlive_a_holder_that_is_killed(tmp_path, holder):
    processes.end(holder)
    lock.check_free(tmp_path)
    descriptor = lock.hold(tmp_path)
    assert descriptor is not None
    os.close(descriptor)


def test_a_start_waits_a_moment_for_ranks_that_are_on_their_way_out(tmp_path, root):
    leaving = HOLDER.replace("time.sleep(3600)", "sys.stdin.readline(); time.sleep(0.5)")
    process = processes.start([sys.executable, "-c", leaving, tmp_path], cwd=root, stdin=-1, stdout=-1, text=True)
    assert process.stdout.readline() == "held\n"
    process.stdin.write("leave\n")
    process.stdin.close()
    held = lock.hold(tmp_path)
    assert held is not None
    os.close(held)
    processes.end(process)
    process.stdout.close()


def test_a_start_compares_itself_with_what_the_start_before_it_writes_at_its_end(make_run, monkeypatch):
    run = make_run()
    config = resolve(ds_configs.read(run.config), 2)
    before = lock.hold(config.folder)
    assert before is not None

    def end():
        write_checkpoint(config.folder, 2)
        write_json(config.folder / "config.json", config.values | {"run": config.values["run"] | {"seed": 8}})
        os.close(before)

    threading.Timer(1.0, end).start()
    monkeypatch.setattr(lock, "WAIT_SECONDS", 60.0)  # The machine may be busy.
    world = World(rank=0, local_rank=0, size=2, local_size=2, master_addr="127.0.0.1", master_port=1)
    with pytest.raises(ConfigError, match=r"run\.seed differs from the run"):
        preflight(config, world)


def test_looking_at_a_new_folder_leaves_nothing_there(tmp_path):
    lock.check_free(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_said_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    def refuse(descriptor, operation):
        raise OSError(38, os.strerror(38))  # ENOSYS, as Lustre mounted without them gives

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert lock.hold(tmp_path) is None
    assert "this file system has no locks" in caplog.text


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / lock.NAME).mkdir()  # root may write anywhere, but not to a folder
    with pytest.raises(ConfigError, match=r"run\.directory names another place"):
        lock.hold(tmp_path)
