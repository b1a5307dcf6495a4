"""Shuffle a corpus of any size: two passes over the disk, bounded memory.

Pass 1, `scatter`, once per part of the corpus: every record is dealt to one of the shards by a seeded draw, and the part's
records are written grouped by shard. Pass 2, `gather`, once per shard: its records are collected from all parts and
shuffled by a second draw. Both draws depend on the seed and the number of the part or shard alone, so neither the number
of workers nor a restart changes a byte. Records are lines; what is in them is the caller's business.

    part 0 ──scatter──> [runs of shard 0 | 1 | 2 ...]  ─┐
    part 1 ──scatter──> [runs of shard 0 | 1 | 2 ...]  ─┼─gather──> shard 0, shard 1, shard 2 ...
"""

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from data.documents import DataError
from data.reading.compression import zstd
from ds_configs.files import replacing

_DEALT_AT_ONCE_BYTES = 48 << 20  # The more, the longer the runs that `gather` reads.
_WANTED_BY = 'shuffling with compression other than "none"'
_LEVEL = 1  # Level 3 is a third slower and saves a tenth.
_TRAILER = struct.Struct("<8sQQ")  # magic, offset of the index, number of batches
_MAGIC = {"none": b"scatter0", "zst": b"scatter1"}  # A part says itself how its runs are compressed.


@dataclass(frozen=True, kw_only=True)
class ShuffleConfig:
    """How a corpus is dealt to shards. A shard must fit into memory: keep it at a few hundred MB."""

    num_shards: int
    seed: int
    compression: Literal["zst", "none"] = "zst"

    def __post_init__(self) -> None:
        if self.num_shards < 1:
            raise ValueError(f"num_shards = {self.num_shards}; it must be 1 or more.")


def scatter(records: Iterable[bytes], part: int, config: ShuffleConfig, output: Path) -> int:
    """Deal the records of a part, lines that end in a line feed, to the shards; return their number.

    `output` appears when it is complete. It holds runs of records of one shard and an index of them.
    """
    draw = np.random.Generator(np.random.PCG64([config.seed, 0, part]))
    compress = _compressor(config)
    index = []
    count = 0
    with replacing(output) as path, path.open("wb") as file:
        for batch in _batches(records):
            shards = draw.integers(config.num_shards, size=len(batch))
            order = np.argsort(shards, kind="stable")
            bounds = np.searchsorted(shards[order], np.arange(config.num_shards + 1)).tolist()
            dealt = [batch[i] for i in order.tolist()]
            runs = np.zeros((config.num_shards, 3), dtype="<u8")  # offset, stored bytes, CRC-32 of them
            for shard, (first, last) in enumerate(pairwise(bounds)):
                if first < last:
                    run = compress(b"".join(dealt[first:last]))
                    runs[shard] = file.tell(), len(run), zlib.crc32(run)
                    file.write(run)
            index.append(runs)
            count += len(batch)
        offset = file.tell()
        if index:
            # By shard, so that `gather` reads the rows of its shard and no others.
            np.ascontiguousarray(np.stack(index).transpose(1, 0, 2)).tofile(file)
        file.write(_TRAILER.pack(_MAGIC[config.compression], offset, len(index)))
    return count


def gather(inputs: Sequence[Path], shard: int, config: ShuffleConfig, output: Path) -> int:
    """Collect a shard's records from the files of all parts, in the parts' order, shuffle and write them; return their number.

    `output` is a file of lines, zstd-compressed if the config says so. It appears when it is complete.

    Raises:
        DataError: If a file is damaged.
    """
    records = [line for path in inputs for run in _runs(path, shard, config) for line in run.split(b"\n")[:-1]]
    order = np.random.Generator(np.random.PCG64([config.seed, 1, shard])).permutation(len(records)).tolist()
    with replacing(output) as path, path.open("wb") as file, _line_writer(file, config) as write:
        for at in range(0, len(order), 1024):
            write(b"".join(records[i] + b"\n" for i in order[at : at + 1024]))
    return len(records)


def _batches(records: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record) + 48  # The object's own size counts with short records.
        if size >= _DEALT_AT_ONCE_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _runs(path: Path, shard: int, config: ShuffleConfig) -> Iterator[bytes]:
    """Yield the runs of a shard in one file, decompressed."""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        end = file.tell() - _TRAILER.size
        file.seek(max(end, 0))
        trailer = file.read()
        magic, offset, num_batches = _TRAILER.unpack(trailer) if end >= 0 else (b"", 0, 0)
        if magic not in _MAGIC.values() or offset + num_batches * config.num_shards * 24 != end:
            raise DataError(f"{path}: not a complete file of {config.num_shards} shards. Delete it; the next start makes it again.")
        decompress = zstd(path).decompress if magic == _MAGIC["zst"] else bytes
        file.seek(offset + shard * num_batches * 24)
        for start, size, checksum in np.fromfile(file, dtype="<u8", count=num_batches * 3).reshape(-1, 3).tolist():
            if size:
                run = os.pread(file.fileno(), size, start)
                if zlib.crc32(run) != checksum:
                    raise DataError(f"{path}: {size} bytes at {start} have changed on disk. Delete it; the next start makes it again.")
                yield decompress(run)


@contextmanager
def _line_writer(file: BinaryIO, config: ShuffleConfig) -> Iterator[Callable[[bytes], Any]]:
    if config.compression == "none":
        yield file.write
        return
    library = zstd(_WANTED_BY)
    options = {library.CompressionParameter.compression_level: _LEVEL, library.CompressionParameter.checksum_flag: 1}
    with library.ZstdFile(file, "w", options=options) as writer:
        yield writer.write


def _compressor(config: ShuffleConfig) -> Callable[[bytes], bytes]:
    return partial(zstd(_WANTED_BY).compress, level=_LEVEL) if config.compression == "zst" else bytes
