"""What every rank reads of the shared disk at a start and at a resume: hundreds of ranks do it at once."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ds_configs
from tests.data.stores import flip_bit
from tests.training.conftest import TinyRun
from training.config import resolve
from training.launch.world import World
from training.preflight import preflight

Opened = list[tuple[int, str]]


def start_counted(run: TinyRun, ranks: int, *overrides: str) -> list[Opened]:
    """By rank: size in bytes and path of every shared file opened for reading before training."""
    reads = run.config.parent / "reads"
    reads.mkdir(exist_ok=True)
    stores = json.loads(run.config.read_text(encoding="utf-8"))["data"]["directory"]
    run.start(*overrides, ranks=ranks, fault="count reads", READS=str(reads), SHARED=f"{run.config}:{run.folder}:{stores}")
    code, output = run.finish()
    assert code == 0, output
    lines = [(reads / f"rank{rank}").read_text(encoding="utf-8").splitlines() for rank in range(ranks)]
    return [[(int(line.split(" ")[0]), line.partition(" ")[2]) for line in own] for own in lines]


def opens(own: Opened, part: str) -> int:
    return sum(part in path for _, path in own)


@pytest.fixture
def opened_here() -> Iterator[list[str]]:
    """Every path that is opened while the test runs; an audit hook stays as long as its process, so it is told to forget."""
    paths: list[str] = []
    listening = True
    sys.addaudithook(lambda event, arguments: paths.append(str(arguments[0])) if event == "open" and listening else None)
    yield paths
    listening = False


def world_of(rank: int, size: int) -> World:
    return World(rank=rank, local_rank=rank % 6, size=size, local_size=6, master_addr="127.0.0.1", master_port=1)


def test_192_ranks_hash_every_file_of_the_store_once_and_open_besides_what_they_use(
    make_run: Callable[..., TinyRun], opened_here: list[str]
) -> None:
    run = make_run()
    config = resolve(ds_configs.read(run.config, ["pipeline.stages=6", "train_batch_size=64", "gradient_accumulation_steps=null"]), 192)
    stores = str(config.data.directory)

    def opened_by(rank: int) -> list[str]:
        opened_here.clear()
        preflight(config, world_of(rank, 192))
        return [path.removeprefix(stores) for path in opened_here if path.startswith(stores)]

    by_rank = {rank: opened_by(rank) for rank in range(1, 40)}
    usual = by_rank[39]
    # Record, manifest, four files of the tokenizer and one of them again, the index twice, the tokens.
    assert len(usual) <= 10, usual
    assert not [path for path in usual if path.endswith((".png", "report.json", "valid-00000.bin"))]
    extra = [sorted((Counter(own) - Counter(usual)).elements()) for own in by_rank.values()]
    hashed = [path for own in extra for path in own]
    assert max(map(len, extra)) == 1
    assert len(set(hashed)) == len(hashed)
    assert any(path.endswith("train-00000.bin") for path in hashed)


def test_a_flipped_bit_is_found_by_the_one_rank_whose_share_it_is_in(make_run: Callable[..., TinyRun], tmp_path: Path) -> None:
    run = make_run()
    values = json.loads(run.config.read_text(encoding="utf-8"))
    values["data"]["directory"] = str(shutil.copytree(values["data"]["directory"], tmp_path / "stores"))
    run.config.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    config = resolve(ds_configs.read(run.config, ["pipeline.stages=6", "train_batch_size=64", "gradient_accumulation_steps=null"]), 192)
    for path in (tmp_path / "stores").glob("*/valid-00000.bin"):
        flip_bit(path, 7)

    refusals = []
    for rank in range(1, 40):
        try:
            preflight(config, world_of(rank, 192))
        except ValueError as error:
            refusals.append(str(error))
    (line,) = refusals
    assert "valid-00000.bin was changed after it was written" in line


class Counted:
    """A start and a resume with a number of ranks, two stages each."""

    def __init__(self, run: TinyRun, ranks: int) -> None:
        self.ranks = ranks
        batch = "gradient_accumulation_steps=null"
        self.start = start_counted(run, ranks, "training.steps=2", batch)
        self.resume = start_counted(run, ranks, "training.steps=4", batch)
        (path,) = run.folder.glob("checkpoints/step00000002/manifest.json")
        self.saved = json.loads(path.read_text(encoding="utf-8"))["files"]

    def most(self, opened: list[Opened]) -> tuple[int, int]:
        """Opens and bytes of the rank of the last stage that reads most."""
        last = opened[1::2]
        return max(map(len, last)), max(sum(size for size, _ in own) for own in last)


@pytest.fixture(scope="module")
def two(make_run: Callable[..., TinyRun]) -> Counted:
    return Counted(make_run(training__sample_tokens=0), 2)


@pytest.mark.slow
@pytest.mark.distributed
def test_ranks_share_the_hashing_of_the_store_and_open_besides_what_they_use(two: Counted) -> None:
    (folder,) = {path.rpartition("/")[0] for own in two.start for _, path in own if path.endswith("/manifest.json")}
    manifest = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
    files = len(manifest["files"])
    tokenizer = sum(name.startswith("tokenizer/") for name in manifest["files"])
    assert {name for name in manifest["files"] if any(opens(own, name) for own in two.start)} == set(manifest["files"])
    for own in two.start[1:]:
        # Configuration, record and manifest; its share to hash; the tokenizer's fingerprint and itself; index and tokens of one shard.
        assert len(own) <= 3 + -(-files // two.ranks) + 2 * tokenizer + 3 + 1, own
        assert opens(own, ".png") + opens(own, "report.") <= -(-3 // two.ranks) + 1


@pytest.mark.slow
@pytest.mark.distributed
def test_a_resume_opens_the_stages_own_files_and_a_share_of_the_others(two: Counted) -> None:
    saved = two.saved
    for own, before in zip(two.resume[1:], two.start[1:], strict=True):
        # Manifest and share to hash; and its own file of the optimizer, the counters and the random state. Each of these twice: torch
        # looks first what kind of file it is.
        assert opens(own, "checkpoints/") <= 1 + -(-len(saved) // two.ranks) + 2 + 2 + 2, own
        assert len(own) - opens(own, "checkpoints/") <= len(before) + 1


@pytest.mark.slow
@pytest.mark.distributed
def test_a_rank_does_not_read_more_where_there_are_more_ranks(two: Counted, make_run: Callable[..., TinyRun]) -> None:
    four = Counted(make_run(training__sample_tokens=0), 4)
    for few, many in ((two.start, four.start), (two.resume, four.resume)):
        (opens_of_few, bytes_of_few), (opens_of_many, bytes_of_many) = two.most(few), four.most(many)
        print(f"of 2 ranks {opens_of_few} opens, {bytes_of_few} bytes; of 4 ranks {opens_of_many} opens, {bytes_of_many} bytes")
        assert opens_of_many <= opens_of_few
        assert bytes_of_many <= bytes_of_few
