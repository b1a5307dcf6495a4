"""The first steps of a preparation: read and clean each part, and leave out copies."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data import sources, spool
from data.clean import Cleaner, RuleCount, build_rules
from data.config import DataConfig
from data.deduplicate import EXACT, KEPT, NEAR, Duplicates, find_duplicates, write_sketches
from data.documents import DataError, Document
from data.records import BadInput
from data.tasks import Result, replacing

logger = logging.getLogger(__name__)

_NUM_BAD_SAMPLES = 20
_NUM_DUPLICATE_SAMPLES = 5
_EXCERPT_CHARS = 200


def clean_part(config: DataConfig, part: sources.Part, output: Path) -> Result:
    """Read a part, apply the rules and write what stays: documents, their sketches, their lengths."""
    of_source = config.all_sources[part.source].clean
    cleaner = Cleaner(build_rules(config.clean if of_source is None else of_source))
    counts: dict[str, Any] = {"documents_in": 0, "chars_in": 0, "num_bad": 0, "bad": []}
    lengths: list[int] = []

    def kept(add: Any) -> Iterator[Document]:
        for item in sources.documents(config, part):
            if isinstance(item, BadInput):
                counts["num_bad"] += 1
                if len(counts["bad"]) < _NUM_BAD_SAMPLES:
                    counts["bad"].append({"source": item.source, "reason": item.reason})
                continue
            counts["documents_in"] += 1
            counts["chars_in"] += len(item.text)
            document = cleaner.clean(item)
            if document is not None:
                lengths.append(len(document.text))
                add(document)
                yield document

    with spool.writer(output) as add:
        if config.deduplicate is not None:
            write_sketches(sketch_path(output), (document.text for document in kept(add)), config.deduplicate)
        else:
            for _ in kept(add):
                pass
    save_array(lengths_path(output), np.array(lengths, dtype=np.int32))
    rules = {name: asdict(count) for name, count in cleaner.counts.items()}
    return {**counts, "rules": rules, "documents": len(lengths), "chars": sum(lengths)}


def sketch_path(prefix: Path) -> Path:
    """Where a part's hashes lie."""
    return prefix.with_name(prefix.name + ".sketch")


def lengths_path(prefix: Path) -> Path:
    """Where the lengths of a part's documents lie: (documents,) int32, in characters."""
    return prefix.with_name(prefix.name + ".lengths.npy")


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array so that the file is never seen half-written."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def check_bad_input(results: Sequence[Result], config: DataConfig) -> None:
    """Fail when too much of the input could not be read.

    Raises:
        DataError: Above `data.max_bad_ratio`, or if nothing is left.
    """
    num_bad = sum(result["num_bad"] for result in results)
    num_good = sum(result["documents_in"] for result in results)
    samples = [f"{sample['source']}: {sample['reason']}" for result in results for sample in result["bad"]]
    if num_bad:
        logger.warning("%d of %d records could not be read; the first: %s", num_bad, num_bad + num_good, samples[0])
    if num_bad > config.max_bad_ratio * (num_bad + num_good):
        raise DataError(
            f"{config.name}: {num_bad} of {num_bad + num_good} records could not be read, more than data.max_bad_ratio ="
            f" {config.max_bad_ratio:g} allows. The first: {'; '.join(samples[:3])}. Repair the input or raise the ratio."
        )
    if not sum(result["documents"] for result in results):
        dropped = f" of {num_good} documents, all dropped by data.clean" if num_good else ""
        raise DataError(f"{config.name}: no text is left{dropped}. Check the input and the rules.")


def drop_copies(config: DataConfig, prefixes: Sequence[Path], output: Path) -> Result:
    """Find the copies among all parts and write for each part which documents stay: (documents,) bool."""
    assert config.deduplicate is not None, "asked for by the caller"
    found = find_duplicates([sketch_path(prefix) for prefix in prefixes], config.deduplicate)
    documents, chars, chars_in = [], [], 0
    for prefix, reasons in zip(prefixes, found.reasons, strict=True):
        keep = reasons == KEPT
        lengths = np.load(lengths_path(prefix))
        save_array(keep_path(output, prefix), keep)
        documents.append(int(np.count_nonzero(keep)))
        chars.append(int(lengths[keep].sum(dtype=np.int64)))
        chars_in += int(lengths.sum(dtype=np.int64))
    dropped = {"exact": found.count(EXACT), "near": found.count(NEAR)}
    return {"documents": documents, "chars": chars, "chars_in": chars_in, "dropped": dropped, "samples": _samples(found, prefixes)}


def keep_path(output: Path, prefix: Path) -> Path:
    """Where the mask of the part at `prefix` lies."""
    return output.with_name(f"{prefix.name}.keep.npy")


def _samples(found: Duplicates, prefixes: Sequence[Path]) -> list[dict[str, str]]:
    samples = []
    for reason in (EXACT, NEAR):
        chosen = [sample for sample in found.samples if sample[0] == reason][:_NUM_DUPLICATE_SAMPLES]
        for _, dropped, first in chosen:
            copy, original = (_document(prefixes[piece], index) for piece, index in (dropped, first))
            kind = "exact" if reason == EXACT else "near"
            samples.append({"kind": kind, "source": copy.source, "like": original.source, "text": excerpt(copy.text)})
    return samples


def _document(prefix: Path, index: int) -> Document:
    return next(document for number, document in enumerate(spool.read(prefix)) if number == index)


def excerpt(text: str) -> str:
    """The beginning of a text on one line."""
    text = " ".join(text[: 4 * _EXCERPT_CHARS].split())
    return text if len(text) <= _EXCERPT_CHARS else text[:_EXCERPT_CHARS] + "…"


def total_rules(results: Sequence[Result]) -> dict[str, RuleCount]:
    """Add up what each rule did over all parts."""
    totals: dict[str, RuleCount] = {}
    for result in results:
        for name, count in result["rules"].items():
            totals.setdefault(name, RuleCount()).add(RuleCount(**count))
    return totals
