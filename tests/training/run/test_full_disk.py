"""The disk of a run is full for a while: the run goes on without saves, and saves again when there is room."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from training.checkpoints.find_and_verify import newest_good

pytestmark = pytest.mark.distributed
MEBIBYTE = b"\0" * (1 << 20)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system in memory, with room for hundreds of these checkpoints."""
    if shutil.which("mount") is None:
        pytest.skip("no mount: apt-get install mount")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", tmp_path], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


def fill(path: Path) -> None:
    """Until nothing more can be written."""
    with path.open("wb", buffering=0) as file:
        for piece in (MEBIBYTE, b"\0" * 512):
            with contextlib.suppress(OSError):
                while file.write(piece):
                    pass
    assert shutil.disk_usage(path).free < len(MEBIBYTE)


@pytest.mark.parametrize("in_background", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_run_on_a_full_disk_keeps_its_checkpoint_goes_on_and_saves_when_there_is_room(
    make_run: Any, disk: Path, tmp_path_factory: pytest.TempPathFactory, in_background: bool
) -> None:
    run = make_run(
        run__directory=str(disk),
        training__steps=1_000_000,
        training__eval_interval_steps=1_000_000,
        training__save_interval_steps=4,
        training__keep_checkpoints=1000,
        training__async_save=in_background,
    )
    run.folder = disk / run.config.stem
    said = tmp_path_factory.mktemp("said") / "said.txt"
    run.output = said
    run.start()

    def lines_with(text: str) -> int:
        return said.read_text(encoding="utf-8").count(text)

    run.wait_for(lambda: bool(run.tags()), "a checkpoint")
    fill(disk / "filler")
    run.wait_for(lambda: lines_with("was not saved") >= 1, "a save that fails")
    kept = run.tags()
    run.wait_for(lambda: lines_with("was not saved") >= 3, "later saves that fail")
    assert run.tags() == kept, "what was saved before stays, and nothing torn is published"
    assert newest_good(run.folder).folder.name == kept[-1]
    (disk / "filler").unlink()
    run.wait_for(lambda: run.tags() > kept, "a save that succeeds")
    (run.folder / "STOP").touch()
    code = run.process.wait()
    assert code == 143, said.read_text(encoding="utf-8")
    assert lines_with("No space left on device") >= lines_with("was not saved"), "and not what torch says of a file that has no end"
    last = newest_good(run.folder).step
    assert run.tags()[-1] == f"step{last:08d}"
    assert sorted(run.curve()) == list(range(1, last + 1)), "the curves have caught up"
