"""Measure reading a token store: random windows a second, and the character encoder's speed.

    python benchmarks/data_windows.py [--tokens 200000000] [--seq-length 2048] [--seconds 5]

The store is made of random ids in a temporary folder; its pages are in memory afterwards, as those of a store that is
trained on are after a while.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from data.batches.token_stream import Stream
from data.batches.windows import StreamWindows, TrainingSet
from data.store import token_store
from data.tokenizers.encoders import CharacterEncoder

_NUM_SHARDS = 8
_DOCUMENT_TOKENS = 1000


def main(arguments: Sequence[str]) -> int:
    """Make a store, read it, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tokens", type=int, default=200_000_000)
    parser.add_argument("--seq-length", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args(arguments)

    work = Path(tempfile.mkdtemp(prefix="windows-"))
    stream = make_stream(work, options.tokens)
    samples = TrainingSet([StreamWindows(stream, options.seq_length, 1, "drop")], [1.0], 1)
    batches = samples.batches(start_sample=0, replica=0, num_replicas=1, micro_batch=8)
    next(batches)
    count, start, processor = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < options.seconds:
        next(batches)
        count += 8
    wall, processor = time.perf_counter() - start, time.process_time() - processor
    speeds = f"{count / wall:,.0f} a second, {count / processor:,.0f} of processor time"
    print(f"windows of {options.seq_length} as int64 tensors: {speeds}")
    shutil.rmtree(work)

    draw = np.random.default_rng(0)
    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 12_000)]
    encode = CharacterEncoder({character: index + 1 for index, character in enumerate(characters)} | {"<unk>": 0}, "<unk>")
    for length in (60, 2000):
        texts = ["".join(characters[i] for i in row) for row in (draw.zipf(1.2, (2_000_000 // length, length)) % len(characters)).tolist()]
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        start = time.process_time()
        for _ in range(5):
            encode(texts)
        print(f"characters, texts of {length}: {5 * megabytes / (time.process_time() - start):,.0f} MB/s of processor time")
    return 0


def make_stream(work: Path, num_tokens: int) -> Stream:
    draw = np.random.default_rng(0)
    for index in range(_NUM_SHARDS):
        with token_store.ShardWriter(work / str(index), 65_000) as writer:
            for _ in range(num_tokens // _NUM_SHARDS // _DOCUMENT_TOKENS):
                writer.add(draw.integers(0, 65_000, _DOCUMENT_TOKENS))
    return Stream([token_store.Shard(work / str(index)) for index in range(_NUM_SHARDS)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
