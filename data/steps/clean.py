"""The first steps of a preparation: read and clean each part, and leave out copies."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data.cleaning.cleaner import Cleaner, RuleCount, build_rules, excerpt
from data.cleaning.duplicates import EXACT, KEPT, NEAR, Duplicates, find_duplicates, write_sketches
from data.config import DataConfig
from data.corpora import sources
from data.documents import Document
from data.reading.records import BadInput, FileRead, Remark, printable
from data.steps import document_files
from data.steps.document_files import DocumentFile, save_array
from data.steps.tasks import Result
from data.store.fits_config import check_bad_ratio
from ds_configs.atomic_files import with_ending

logger = logging.getLogger(__name__)

# What lies beside the documents of a part.
SKETCHES = ".sketch"  # Their hashes, for finding copies.
LENGTHS = ".lengths.npy"  # (documents,) int32, in characters.

_NUM_BAD_SAMPLES = 20
_NUM_LOGGED = 10


def clean_part(config: DataConfig, part: sources.Part, output: Path) -> Result:
    """Read a part, apply the rules and write what stays: documents, their sketches, their lengths."""
    cleaner = Cleaner(build_rules(config.all_sources[part.source].clean))
    read = _Read()
    lengths: list[int] = []

    def kept(add: Callable[[Document], None]) -> Iterator[str]:
        for item in sources.documents(config, part):
            read.count(item)
            document = cleaner.clean(item) if isinstance(item, Document) else None
            if document is not None:
                lengths.append(len(document.text))
                add(replace(document, of_source=part.source) if config.mixes_sources else document)
                yield document.text

    with document_files.writer(output) as add:
        if config.deduplicate is not None:
            write_sketches(with_ending(output, SKETCHES), kept(add), config.deduplicate)
        else:
            for _ in kept(add):
                pass
    save_array(with_ending(output, LENGTHS), np.array(lengths, dtype=np.int32))
    rules = {name: asdict(count) for name, count in cleaner.counts.items()}
    return {**asdict(read), "rules": rules, "documents": len(lengths), "chars": sum(lengths)}


@dataclass
class _Read:
    """What was read of a part, before any rule."""

    documents_in: int = 0
    chars_in: int = 0
    bytes_in: int = 0
    """Of the files, unreadable records included."""
    num_bad: int = 0
    bad_bytes: int = 0
    bad: list[dict[str, str]] = field(default_factory=list)
    """The first ones."""
    bad_reasons: dict[str, int] = field(default_factory=dict)
    bad_files: dict[str, int] = field(default_factory=dict)
    files: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[dict[str, Any]] = field(default_factory=list)

    def count(self, item: Document | BadInput | FileRead | Remark) -> None:
        if isinstance(item, Document):
            self.documents_in += 1
            self.chars_in += len(item.text)
        elif isinstance(item, BadInput):
            self.num_bad += 1
            self.bad_bytes += item.num_bytes
            for counts, name in ((self.bad_reasons, printable(item.kind)), (self.bad_files, printable(item.file))):
                counts[name] = counts.get(name, 0) + 1
            if len(self.bad) < _NUM_BAD_SAMPLES:
                self.bad.append({"source": printable(item.source), "reason": printable(item.reason)})
        elif isinstance(item, FileRead):
            self.bytes_in += item.num_bytes
            self.files.append({"path": item.path, "encoding": item.encoding, "replaced": item.num_replaced})
        else:
            self.remarks.append(asdict(item))


def check_bad_input(results: Sequence[Result], config: DataConfig) -> None:
    """Say what was read, and fail when too much of it could not be.

    Raises:
        DataError: Above `data.max_bad_ratio`.
    """
    _say(results)
    counts = bad_input(results)
    samples = [f"{sample['source']}: {sample['reason']}" for result in results for sample in result["bad"]]
    if samples:
        logger.warning("%d of %d records could not be read; the first: %s", counts["records"], counts["of_records"], samples[0])
    check_bad_ratio(counts, config, f" The first: {'; '.join(samples[:3]).removesuffix('.')}.")


def bad_input(results: Sequence[Result]) -> dict[str, int]:
    """How much of the input could not be read: records and bytes, and of how many."""
    num_bad, num_good, num_bytes, of_bytes = (
        sum(result[name] for result in results) for name in ("num_bad", "documents_in", "bad_bytes", "bytes_in")
    )
    return {"records": num_bad, "of_records": num_bad + num_good, "bytes": num_bytes, "of_bytes": of_bytes}


def _say(results: Sequence[Result]) -> None:
    """Log what a person should know about the input; all of it is in the report."""
    remarks = [remark for result in results for remark in result["remarks"]]
    for remark in remarks[:_NUM_LOGGED]:
        logger.info("%s", said(remark))
    if len(remarks) > _NUM_LOGGED:
        logger.info("(%d more of this kind are in the report)", len(remarks) - _NUM_LOGGED)
    replaced = [file for result in results for file in result["files"] if file["replaced"]]
    if replaced:
        total = sum(file["replaced"] for file in replaced)
        logger.warning(
            "unreadable places replaced by \ufffd: %d in %d of the files, the first %s", total, len(replaced), replaced[0]["path"]
        )


def said(remark: dict[str, Any]) -> str:
    """A remark of a result as a line."""
    left_out = f": {remark['chars_left_out']:,} characters left out" if remark["chars_left_out"] else ""
    return f"{remark['source']}: {remark['text']}{left_out}"


def drop_copies(config: DataConfig, prefixes: Sequence[Path], output: Path) -> Result:
    """Find the copies among all parts and write for each part which documents stay: (documents,) bool."""
    assert config.deduplicate is not None, "asked for by the caller"
    found = find_duplicates([with_ending(prefix, SKETCHES) for prefix in prefixes], config.deduplicate)
    documents, chars = [], []
    for prefix, reasons in zip(prefixes, found.reasons, strict=True):
        keep = reasons == KEPT
        lengths = np.load(with_ending(prefix, LENGTHS))
        save_array(keep_path(output, prefix), keep)
        documents.append(int(np.count_nonzero(keep)))
        chars.append(int(lengths[keep].sum(dtype=np.int64)))
    dropped = {"exact": found.count(EXACT), "near": found.count(NEAR)}
    return {"documents": documents, "chars": chars, "dropped": dropped, "samples": _samples(found, prefixes)}


def keep_path(output: Path, prefix: Path) -> Path:
    """Where the mask of the part at `prefix` lies."""
    return output.with_name(f"{prefix.name}.keep.npy")


def _samples(found: Duplicates, prefixes: Sequence[Path]) -> list[dict[str, str]]:
    samples = []
    for reason, dropped, first in found.samples:
        kind = "exact" if reason == EXACT else "near"
        copy, original = (next(islice(DocumentFile(prefixes[piece]).read(), index, None)) for piece, index in (dropped, first))
        samples.append({"kind": kind, "source": copy.source, "like": original.source, "text": excerpt(copy.text)})
    return samples


def total_rules(results: Sequence[Result]) -> dict[str, RuleCount]:
    """Add up what each rule did over all parts."""
    totals: dict[str, RuleCount] = {}
    for result in results:
        for name, count in result["rules"].items():
            totals.setdefault(name, RuleCount()).add(RuleCount(**count))
    return totals
