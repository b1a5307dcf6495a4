"""Measure tokenization against the obvious script, with the same tokenizer and the same ids.

    python benchmarks/data_tokenize.py TOKENIZER TEXTS [--megabytes 100] [--workers 2]

TOKENIZER is a folder, a tokenizer.json or a sentencepiece model; TEXTS is anything `data.path` can be. The obvious script is a
pool of processes, each calling a fast Hugging Face tokenizer on lists of 1,000 documents and saving the ids as compressed
.npz. Ours is the preparation's own step: documents from disk, ids as Megatron .bin/.idx, counts of tokens and characters.
Wall time depends on what else the machine does; processor time much less.
"""

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from data.config import DataConfig, TokenizerConfig
from data.documents import Document
from data.reading.find_files import find_files
from data.reading.formats import read, split
from data.source_config import TextConfig
from data.steps import document_files
from data.steps.document_files import DocumentFile
from data.steps.tokenization import split_prefix, tokenize_shard
from data.store import token_store
from data.tokenizers import adoption

_DOCUMENTS_AT_ONCE = 1000


@dataclass
class Run:
    """What one way of tokenizing took."""

    wall: float
    processor: float
    ids: np.ndarray


def main(arguments: Sequence[str]) -> int:
    """Run both and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("tokenizer")
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--chars", type=int, default=0, help="cut documents to so many characters")
    options = parser.parse_args(arguments)

    documents = read_documents(options.texts, options.megabytes, options.chars)
    megabytes = sum(len(document.text.encode()) for document in documents) / 1e6
    work = Path(tempfile.mkdtemp(prefix="tokenize-"))
    config = TokenizerConfig(kind="existing", path=options.tokenizer, add_eos=False)
    adoption.adopt(config, work / "tokenizer")
    size = f"{megabytes * 1e6 / len(documents):,.0f} bytes, {megabytes:.1f} MB"
    print(f"{len(documents):,} documents of {size}, {options.workers} workers")
    obvious = measure(lambda: run_obvious(documents, work, options.workers))
    ours = measure(lambda: run_ours(documents, config, work, options.workers))
    assert np.array_equal(obvious.ids, ours.ids), "the ids differ"
    for name, run in (("obvious script", obvious), ("data.steps.tokenization", ours)):
        speeds = f"{megabytes / run.wall:6.2f} MB/s, {megabytes / run.processor:6.2f} MB/s of processor time"
        print(f"{name:<16}{run.wall:7.1f} s  {speeds}  {len(run.ids):,} ids")
    print(f"the same ids; ratio {obvious.wall / ours.wall:.2f} by the clock, {obvious.processor / ours.processor:.2f} by processor time")
    shutil.rmtree(work)
    return 0


def read_documents(paths: Sequence[str], megabytes: float, chars: int) -> list[Document]:
    documents = []
    left = megabytes * 1e6
    for piece in split(find_files(paths), TextConfig()):
        for item in read(piece, TextConfig()):
            if isinstance(item, Document):
                texts = [item.text[at : at + chars] for at in range(0, len(item.text), chars)] if chars else [item.text]
                documents += [Document(text, item.source) for text in texts]
                left -= len(item.text.encode())
            if left <= 0:
                return documents
    return documents


def measure(run: Callable[[], np.ndarray]) -> Run:
    before, start = processor_seconds(), time.perf_counter()
    ids = run()
    return Run(time.perf_counter() - start, processor_seconds() - before, ids)


def processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run_obvious(documents: list[Document], work: Path, num_workers: int) -> np.ndarray:
    texts = [document.text for document in documents]
    lists = [texts[first : first + _DOCUMENTS_AT_ONCE] for first in range(0, len(texts), _DOCUMENTS_AT_ONCE)]
    tasks = [(part, work / "tokenizer", work / f"{index:05d}.npz") for index, part in enumerate(lists)]
    with ProcessPoolExecutor(num_workers, get_context("spawn"), load_obvious, (work / "tokenizer",)) as pool:
        list(pool.map(encode_obvious, tasks))
    return np.concatenate([np.load(path)["ids"] for *_, path in tasks])


def load_obvious(folder: Path) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from transformers import AutoTokenizer

    globals()["TOKENIZER"] = AutoTokenizer.from_pretrained(folder)


def encode_obvious(task: tuple[list[str], Path, Path]) -> None:
    texts, _, path = task
    rows = globals()["TOKENIZER"](texts, add_special_tokens=False)["input_ids"]
    np.savez_compressed(path, ids=np.array([index for row in rows for index in row], dtype=np.uint32))


def run_ours(documents: list[Document], config: TokenizerConfig, work: Path, num_workers: int) -> np.ndarray:
    """The documents are on disk already when this step begins; writing them is not measured by the preparation either."""
    shards = []
    for index in range(num_workers):
        part = documents[len(documents) * index // num_workers : len(documents) * (index + 1) // num_workers]
        with document_files.writer(work / f"documents-{index}") as add:
            for document in part:
                add(document)
        shards.append(DocumentFile(work / f"documents-{index}", number=index))
    section = DataConfig(path="x", seq_length=1, tokenizer=config)
    with ProcessPoolExecutor(num_workers, get_context("spawn")) as pool:
        futures = [
            pool.submit(tokenize_shard, section, shard, work / "tokenizer", work / f"ids-{index}") for index, shard in enumerate(shards)
        ]
        for future in futures:
            future.result()
    opened = [token_store.Shard(split_prefix(work / f"ids-{index}", "train")) for index in range(num_workers)]
    return np.concatenate([shard.read(0, shard.num_tokens) for shard in opened])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
