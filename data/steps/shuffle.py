"""Shuffle a corpus of any size: two passes over the disk, bounded memory.

Pass 1, `scatter`, once per part of the corpus: every record is dealt to one of the shards by a seeded draw, and the part's
records are written grouped by shard. Pass 2, `gather`, once per shard: its records are collected from all parts and
shuffled by a second draw. Both draws depend on the seed and the number of the part or shard alone, so neither the number
of workers nor a restart changes a byte. Records are lines.

    part 0 ──scatter──> [runs of shard 0 | 1 | 2 ...]  ─┐
    part 1 ──scatter──> [runs of shard 0 | 1 | 2 ...]  ─┼─gather──> shard 0, shard 1, shard 2 ...
"""

import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from data.config import DataConfig
from data.documents import DataError, batched
from data.packages import is_installed
from data.reading.compression import zstd
from data.steps import document_files
from data.steps.document_files import DocumentFile, save_array
from data.steps.tasks import Result, Runner, Task
from ds_configs.atomic_files import replacing, with_ending

# Splits by position in the text need the shards' characters; of more documents than this a share is chosen by hash.
_COUNT_CHARS_BELOW = 100_000
_BYTES_PER_CHAR = 3
_DEALT_AT_ONCE_BYTES = 48 << 20  # The more, the longer the runs that `gather` reads.
_INDEX = ".index.npy"  # Beside a part, where its runs lie in it: (shards, batches, 3) uint64.
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"  # A run says itself whether it is compressed; no line of text begins so.


def shuffle(config: DataConfig, files: Sequence[DocumentFile], work: Path, run: Runner) -> list[DocumentFile]:
    """Put the documents of a source into a seeded order and cut them into shards of equal size.

    What was only needed on the way is deleted.
    """
    source = files[0].source
    folder = work / f"3-shuffle-{source}"
    num_shards = max(1, -(-sum(file.chars for file in files) * _BYTES_PER_CHAR // (config.shard_mib << 20)))
    parts = [folder / f"part-{index:05d}" for index in range(len(files))]
    calls = [(file, index, num_shards, config.shuffle_seed) for index, file in enumerate(files)]
    run([Task(part, scatter, call) for part, call in zip(parts, calls, strict=True)], config.num_workers)
    count_chars = sum(file.documents for file in files) < _COUNT_CHARS_BELOW
    shards = [folder / f"shard-{index:05d}" for index in range(num_shards)]
    tasks = [Task(shard, gather, (parts, index, num_shards, config.shuffle_seed, count_chars)) for index, shard in enumerate(shards)]
    results = run(tasks, config.num_workers)
    dealt = [path for file in files for path in document_files.paths_of(file.prefix)]
    for path in (*parts, *(with_ending(part, _INDEX) for part in parts), *dealt):
        path.unlink(missing_ok=True)
    return [DocumentFile(shard, None, source, result["documents"], result["chars"]) for shard, result in zip(shards, results, strict=True)]


def scatter(records: Iterable[bytes], part: int, num_shards: int, seed: int, output: Path) -> Result:
    """Deal the records of a part, lines that end in a line feed, to the shards.

    `output` appears when it is complete. It holds runs of records of one shard; an index of them lies beside it.
    """
    compressed = is_installed("backports.zstd")
    draw = np.random.Generator(np.random.PCG64([seed, 0, part]))
    index = []
    count = 0
    with replacing(output) as path:
        with path.open("wb") as file:
            # The object's own size counts with short records.
            for batch in batched(records, lambda record: len(record) + 48, _DEALT_AT_ONCE_BYTES):
                shards = draw.integers(num_shards, size=len(batch))
                order = np.argsort(shards, kind="stable")
                bounds = np.searchsorted(shards[order], np.arange(num_shards + 1)).tolist()
                dealt = [batch[i] for i in order.tolist()]
                runs = np.zeros((num_shards, 3), dtype=np.uint64)  # offset, stored bytes, CRC-32 of them
                for shard, (first, last) in enumerate(pairwise(bounds)):
                    if first < last:
                        run = b"".join(dealt[first:last])
                        run = zstd(output).compress(run, level=document_files.ZSTD_LEVEL) if compressed else run
                        runs[shard] = file.tell(), len(run), zlib.crc32(run)
                        file.write(run)
                index.append(runs)
                count += len(batch)
        # By shard, so that `gather` reads the rows of its shard and no others.
        save_array(with_ending(output, _INDEX), np.stack(index, axis=1) if index else np.zeros((num_shards, 0, 3), dtype=np.uint64))
    return {"documents": count}


def gather(parts: Sequence[Path], shard: int, num_shards: int, seed: int, count_chars: bool, output: Path) -> Result:
    """Collect a shard's records from all parts, in the parts' order, shuffle them in memory and write them.

    With `count_chars` they must be documents. The file of lines at `output` appears when it is complete.

    Raises:
        DataError: If a part is damaged.
    """
    records = [line for part in parts for run in _runs(part, shard, num_shards) for line in run.split(b"\n")[:-1]]
    order = np.random.Generator(np.random.PCG64([seed, 1, shard])).permutation(len(records)).tolist()
    with document_files.write_lines(document_files.paths_of(output)[0]) as write:
        for at in range(0, len(order), 1024):
            write(b"".join(records[i] + b"\n" for i in order[at : at + 1024]))
    chars = sum(len(document.text) for document in DocumentFile(output).read()) if count_chars else 0
    return {"documents": len(records), "chars": chars}


def _runs(part: Path, shard: int, num_shards: int) -> Iterator[bytes]:
    """Yield the runs of a shard in one part, decompressed."""
    again = f"Delete the folder {part.parent}; the next start makes it again."
    try:
        index = np.load(with_ending(part, _INDEX), mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{part}: its index cannot be read ({error}). {again}") from error
    if len(index) != num_shards:
        raise DataError(f"{part}: was dealt to {len(index)} shards, wanted {num_shards}. {again}")
    with part.open("rb") as file:
        for start, size, checksum in index[shard].tolist():
            run = os.pread(file.fileno(), size, start)
            if zlib.crc32(run) != checksum:
                raise DataError(f"{part}: {size} bytes at {start} have changed on disk. {again}")
            yield zstd(part).decompress(run) if run.startswith(_ZSTD_MAGIC) else run
