"""The shuffle as steps of a preparation. How it works is `two_pass_shuffle.py`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.config import DataConfig
from data.steps import intermediate
from data.steps.tasks import Result, Runner, Task
from data.steps.two_pass_shuffle import ShuffleConfig, gather, scatter

# Splits by position in the text need the shards' characters; of more documents than this a share is chosen by hash.
_COUNT_CHARS_BELOW = 100_000
_BYTES_PER_CHAR = 3


@dataclass(frozen=True)
class Spooled:
    """A file of documents between two steps."""

    prefix: Path
    keep: Path | None
    """A mask over them, None for all."""
    source: int
    """Where sources are told apart, its number; else 0."""
    documents: int
    chars: int

    def lines(self) -> Iterator[bytes]:
        """Yield the documents that stay as the file has them, one a line."""
        return intermediate.lines(self.prefix, np.load(self.keep) if self.keep else None)


def shuffle(config: DataConfig, spooled: Sequence[Spooled], work: Path, run: Runner) -> list[Spooled]:
    """Put the documents of each source that is told apart into a seeded order and cut them into shards of equal size.

    What was only needed on the way is deleted.
    """
    shuffled = []
    for source in sorted({item.source for item in spooled}):
        shuffled += _shuffle_source(config, [item for item in spooled if item.source == source], work / f"3-shuffle-{source}", run)
    return shuffled


def _shuffle_source(config: DataConfig, spooled: Sequence[Spooled], work: Path, run: Runner) -> list[Spooled]:
    num_bytes = sum(item.chars for item in spooled) * _BYTES_PER_CHAR
    num_shards = max(1, -(-num_bytes // (config.shard_mib << 20)))
    dealing = ShuffleConfig(num_shards=num_shards, seed=config.shuffle_seed, compression="zst" if intermediate.is_compressed() else "none")
    outputs = [work / f"part-{index:05d}" for index in range(len(spooled))]
    dealt = [Task(output, deal, (item, index, dealing)) for index, (item, output) in enumerate(zip(spooled, outputs, strict=True))]
    run(dealt, config.num_workers)
    count_chars = sum(item.documents for item in spooled) < _COUNT_CHARS_BELOW
    shards = [work / f"shard-{index:05d}" for index in range(num_shards)]
    results = run([Task(shard, collect, (outputs, index, dealing, count_chars)) for index, shard in enumerate(shards)], config.num_workers)
    for path in (*outputs, *(path for item in spooled for path in intermediate.paths_of(item.prefix))):
        path.unlink(missing_ok=True)
    source = spooled[0].source
    return [Spooled(shard, None, source, result["documents"], result["chars"]) for shard, result in zip(shards, results, strict=True)]


def deal(spooled: Spooled, index: int, config: ShuffleConfig, output: Path) -> Result:
    """First pass over one part."""
    return {"documents": scatter(spooled.lines(), index, config, output)}


def collect(parts: Sequence[Path], shard: int, config: ShuffleConfig, count_chars: bool, output: Path) -> Result:
    """Second pass, for one shard."""
    documents = gather(parts, shard, config, intermediate.paths_of(output)[0])
    return {"documents": documents, "chars": sum(len(document.text) for document in intermediate.read(output)) if count_chars else 0}
