"""The shuffle on disk: nothing lost, the same bytes every time, and no more memory than allowed."""

import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from backports import zstd

from data.documents import DataError
from data.steps import shuffle as shuffle_module
from data.steps.document_files import paths_of
from data.steps.shuffle import gather, scatter
from tests.data.stores import flip_bit

RECORDS = [f'{{"text": "第{index}篇 {"山" * (index % 50)}"}}\n'.encode() for index in range(3000)]


def shuffled(folder, num_shards, seed, num_parts=3, order=None):
    """The bytes of the shards of RECORDS, its parts scattered and its shards gathered in any `order`."""
    folder.mkdir(exist_ok=True)
    parts = [folder / f"part-{index}" for index in range(num_parts)]
    slices = np.array_split(np.arange(len(RECORDS)), num_parts)
    for index in order or range(num_parts):
        result = scatter((RECORDS[i] for i in slices[index]), index, num_shards, seed, parts[index])
        assert result == {"documents": len(slices[index])}
    shards = [folder / f"shard-{index}" for index in range(num_shards)]
    for index in reversed(range(num_shards)) if order else range(num_shards):
        gather(parts, index, num_shards, seed, False, shards[index])
    return [paths_of(shard)[0].read_bytes() for shard in shards]


@pytest.fixture
def plain(monkeypatch):
    """A machine without backports.zstd, where nothing is compressed."""
    monkeypatch.setitem(sys.modules, "backports.zstd", None)


def lines_of(shards):
    return [line + b"\n" for shard in shards for line in shard.split(b"\n")[:-1]]


@pytest.mark.parametrize("compressed", [False, True])
def test_every_record_comes_out_once_and_in_another_place(compressed, tmp_path, request):
    if not compressed:
        request.getfixturevalue("plain")
    shards = shuffled(tmp_path, 5, seed=1)
    if compressed:
        shards = [zstd.decompress(shard) for shard in shards]
    lines = lines_of(shards)

    assert Counter(lines) == Counter(RECORDS)
    place = {line: index for index, line in enumerate(lines)}
    moves = np.array([place[record] for record in RECORDS])
    # Independent orders of 3,000 have a correlation of about 1 / sqrt(3000) = 0.02; neighbours stay neighbours in one case of 1,500.
    assert abs(np.corrcoef(moves, np.arange(len(moves)))[0, 1]) < 0.08
    assert np.mean(np.abs(np.diff(moves)) == 1) < 0.01
    sizes = [shard.count(b"\n") for shard in shards]
    assert min(sizes) > 500  # of 600 expected; the standard deviation is 22


def test_the_same_seed_gives_the_same_bytes_in_whatever_order_the_work_is_done(tmp_path):
    assert shuffled(tmp_path / "a", 4, seed=7) == shuffled(tmp_path / "b", 4, seed=7, order=[2, 0, 1])
    assert shuffled(tmp_path / "a", 4, seed=7) != shuffled(tmp_path / "c", 4, seed=8)


def test_a_part_too_large_for_memory_is_dealt_in_batches(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(shuffle_module, "_DEALT_AT_ONCE_BYTES", 20_000)

    shards = shuffled(tmp_path, 3, seed=1)

    assert Counter(lines_of(shards)) == Counter(RECORDS)
    assert shards != shuffled(tmp_path, 3, seed=2)


def test_parts_without_records_and_shards_without_records_are_no_problem(plain, tmp_path):
    for index, records in enumerate([[], RECORDS[:3]]):
        scatter(records, index, 50, 0, tmp_path / f"{index}")

    parts = [tmp_path / "0", tmp_path / "1"]
    results = [gather(parts, shard, 50, 0, False, tmp_path / f"shard-{shard}") for shard in range(50)]

    assert sum(result["documents"] for result in results) == 3
    assert sorted(lines_of((tmp_path / f"shard-{shard}.jsonl").read_bytes() for shard in range(50))) == sorted(RECORDS[:3])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("flip", "changed on disk"),
        ("cut", "changed on disk"),
        ("shards", "was dealt to 3 shards, wanted 4"),
        ("index", "its index cannot be read"),
    ],
)
def test_a_damaged_part_is_refused(damage, reason, tmp_path):
    part = tmp_path / "part"
    scatter(RECORDS, 0, 3, 0, part)
    if damage == "flip":
        flip_bit(part, 5)
    if damage == "cut":
        part.write_bytes(part.read_bytes()[:9])
    if damage == "index":
        part.with_name("part.index.npy").unlink()

    with pytest.raises(DataError, match=reason):
        gather([part], 0, 4 if damage == "shards" else 3, 0, False, tmp_path / "shard")

    assert not list(tmp_path.glob("*shard*"))


def test_an_error_in_the_records_leaves_no_file(tmp_path):
    def broken():
        yield RECORDS[0]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        scatter(broken(), 0, 2, 0, tmp_path / "part")

    assert list(tmp_path.iterdir()) == []


def do_job(folder: Path, moments: int):
    """Shuffle what is not shuffled yet, and kill this process some moments from now: a file opened or renamed, some records."""

    def moment(event="open", _arguments=None):
        nonlocal moments
        if event in ("open", "os.rename"):
            moments -= 1
            if moments == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def records(part):
        for number in range(5000):
            if number % 500 == 0:
                moment()
            yield f'{{"text": "{part} {number} {"水" * (number % 300)}"}}\n'.encode()

    sys.addaudithook(moment)
    parts = [folder / f"part-{index}" for index in range(4)]
    for index, part in enumerate(parts):
        if not part.exists():
            scatter(records(index), index, 4, 3, part)
    for index in range(4):
        if not (folder / f"shard-{index}.jsonl.zst").exists():
            gather(parts, index, 4, 3, False, folder / f"shard-{index}")


@pytest.mark.processes
def test_killed_at_twenty_random_moments_and_started_again_it_ends_with_the_same_bytes(tmp_path):
    draw = random.Random(0)
    assert run_job(tmp_path / "whole", 10**9) == 0
    num_killed = 0
    for attempt in range(20):
        # Four kills a folder: each start goes on where the last one was, and would soon have no more to do.
        folder = tmp_path / f"killed-{attempt // 4}"
        num_killed += run_job(folder, draw.randint(1, 40)) == -signal.SIGKILL
    assert num_killed >= 15
    for attempt in range(0, 20, 4):
        folder = tmp_path / f"killed-{attempt // 4}"
        assert run_job(folder, 10**9) == 0
        assert contents(folder) == contents(tmp_path / "whole")


def run_job(folder: Path, moments: int) -> int:
    """Do the job in a fork of this process, which starts at once; return 0, or the signal that ended it, negative."""
    folder.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            do_job(folder, moments)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(folder: Path):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("shard")}
