"""Measure the two-pass shuffle: JSON documents -> scatter -> gather into compressed shards, MB of text a second and core.

    python benchmarks/data_shuffle.py FOLDER [--workers 1] [--shards 16] [--compression zst|none] [--limit-mb 1000]

FOLDER holds JSON files, e.g. of make_web_documents.py. The processes run under a limit of memory (RLIMIT_DATA); what they
took at most is printed. Everything is written to a temporary folder beside FOLDER and removed.
"""

import argparse
import hashlib
import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from data.documents import Document
from data.reading.find_files import find_files
from data.reading.formats import read, split
from data.reading.records import Piece
from data.source_config import TextConfig
from data.steps import document_files
from data.steps.shuffle import gather, scatter


def main(arguments: Sequence[str]) -> int:
    """Run both passes and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--compression", choices=["zst", "none"], default="zst")
    parser.add_argument("--limit-mb", type=int, default=1000)
    options = parser.parse_args(arguments)

    pieces = split(find_files([str(options.folder)]), TextConfig())
    input_mb = sum(piece.num_bytes for piece in pieces) / 1e6
    work = Path(tempfile.mkdtemp(prefix="shuffle-", dir=options.folder.absolute().parent))
    parts = [work / f"part-{index:05d}" for index in range(len(pieces))]
    shards = [work / f"shard-{index:05d}" for index in range(options.shards)]
    context = get_context("spawn")
    with ProcessPoolExecutor(options.workers, context, limit, (options.limit_mb, options.compression)) as pool:
        list(pool.map(ready, range(options.workers)))
        start = time.perf_counter()
        tasks = [(piece, index, options.shards, part) for index, (piece, part) in enumerate(zip(pieces, parts, strict=True))]
        first = list(pool.map(run_scatter, tasks))
        middle = time.perf_counter()
        second = list(pool.map(run_gather, [(parts, index, options.shards, shard) for index, shard in enumerate(shards)]))
        end = time.perf_counter()
    written = [next(filter(Path.is_file, document_files.paths_of(shard))) for shard in shards]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in written)).hexdigest()[:16]
    stored_mb = sum(path.stat().st_size for path in written) / 1e6
    shutil.rmtree(work)

    seconds = [sum(result[1] for result in results) for results in (first, second)]
    assert sum(result[0] for result in first) == sum(result[0] for result in second), "records were lost"
    print(
        f"{sum(result[0] for result in first)} documents, {input_mb:.0f} MB -> {stored_mb:.0f} MB in {len(shards)} shards, sha256 {digest}"
    )
    print(f"wall time: {end - start:.1f} s (scatter {middle - start:.1f}, gather {end - middle:.1f}) with {options.workers} workers")
    print(f"processor time: scatter {seconds[0]:.1f} s, gather {seconds[1]:.1f} s = {input_mb / sum(seconds):.0f} MB/s a core")
    print(f"most memory of a process: {max(result[2] for result in first + second)} MB, limit {options.limit_mb} MB")
    return 0


def lines(piece: Piece) -> Iterator[bytes]:
    for item in read(piece, TextConfig()):
        if isinstance(item, Document):
            yield json.dumps({"text": item.text, "source": item.source, **item.meta}, ensure_ascii=False).encode() + b"\n"


def run_scatter(task: tuple[Piece, int, int, Path]) -> tuple[int, float, int]:
    piece, index, num_shards, output = task
    start = time.process_time()
    result = scatter(lines(piece), index, num_shards, 0, output)
    return result["documents"], time.process_time() - start, peak_mb()


def run_gather(task: tuple[list[Path], int, int, Path]) -> tuple[int, float, int]:
    parts, index, num_shards, output = task
    start = time.process_time()
    result = gather(parts, index, num_shards, 0, False, output)
    return result["documents"], time.process_time() - start, peak_mb()


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 1_000_000


def limit(megabytes: int, compression: str) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (megabytes * 1_000_000, megabytes * 1_000_000))
    if compression == "none":
        sys.modules["backports.zstd"] = None  # type: ignore[assignment]  # Cannot be imported: files are then not compressed.


def ready(_number: int) -> None:
    """Let a worker import what it needs before the clock runs."""
    time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
