"""Documents on disk: JSON lines between two steps, compressed where backports.zstd is installed; Parquet to be kept.

A file may be read with a mask that leaves out the documents found to be copies.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.documents import Document
from data.packages import is_installed
from data.reading.compression import open_bytes, zstd
from data.steps.holdout import Holdout, SplitName
from ds_configs.atomic_files import replacing, with_ending

ZSTD_LEVEL = 1  # Level 3 is a third slower and saves a tenth.
# What is in memory at a time of a Parquet file.
_ROWS_PER_GROUP = 4096
_CHARS_PER_GROUP = 8 << 20


@dataclass(frozen=True)
class DocumentFile:
    """A file of documents between two steps: of a part of the input, or, behind the shuffle, a shard."""

    prefix: Path
    keep: Path | None = None
    """The file of a mask over them, (documents,) bool; None for all."""
    source: int = 0
    """Where sources are told apart, its number; else 0."""
    documents: int = 0
    chars: int = 0
    number: int = 0
    """How many files of its source with documents stand before it, and, in the next two, how many documents and characters."""
    first_document: int = 0
    first_char: int = 0
    holdout: Holdout = field(default_factory=Holdout)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the documents that stay, each as the line that it is in the file."""
        paths = paths_of(self.prefix)  # backports.zstd may have come or gone since it was written.
        with open_bytes(next(filter(Path.is_file, paths), paths[0])) as file:
            if self.keep is None:
                yield from file
            else:
                yield from (line for line, kept in zip(file, np.load(self.keep).tolist(), strict=True) if kept)

    def read(self) -> Iterator[Document]:
        """Yield the documents that stay, in order."""
        for line in self:
            text, source, meta, *of_source = json.loads(line)
            yield Document(text, source, meta, of_source=of_source[0] if of_source else 0)

    def read_splits(self) -> Iterator[tuple[SplitName, Document]]:
        """Yield the documents that stay with the split each belongs to."""
        return self.holdout.assign(self.read(), self.first_document, self.first_char)


def paths_of(prefix: Path) -> tuple[Path, Path]:
    """The names that the documents at `prefix` can have, the one that is written on this machine first."""
    plain, compressed = with_ending(prefix, ".jsonl"), with_ending(prefix, ".jsonl.zst")
    return (compressed, plain) if is_installed("backports.zstd") else (plain, compressed)


@contextlib.contextmanager
def writer(prefix: Path) -> Iterator[Callable[[Document], None]]:
    """Yield a function that writes one document; the file appears when the block ends well."""
    with write_lines(paths_of(prefix)[0]) as write:

        def add(document: Document) -> None:
            source = [document.of_source] if document.of_source else []
            line = json.dumps([document.text, document.source, document.meta, *source], ensure_ascii=False)
            write(f"{line}\n".encode())

        yield add


@contextlib.contextmanager
def write_lines(path: Path) -> Iterator[Callable[[bytes], Any]]:
    """Yield a function that writes lines, compressed if the name ends in .zst; the file appears when the block ends well."""
    with replacing(path) as temporary, temporary.open("wb") as raw:
        if path.suffix != ".zst":
            yield raw.write
            return
        library = zstd(path)
        options = {library.CompressionParameter.compression_level: ZSTD_LEVEL, library.CompressionParameter.checksum_flag: 1}
        with library.ZstdFile(raw, "w", options=options) as file:
            yield file.write


@contextlib.contextmanager
def parquet_writer(path: Path) -> Iterator[Callable[[Document], None]]:
    """As `writer`, for a Parquet file with the columns text, source and meta (a JSON object)."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(name, pyarrow.string()) for name in ("text", "source", "meta")])
    rows: list[dict[str, str]] = []
    num_chars = 0
    with replacing(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema, compression="zstd") as file:

        def add(document: Document) -> None:
            nonlocal num_chars
            num_chars += len(document.text)
            rows.append({"text": document.text, "source": document.source, "meta": json.dumps(document.meta, ensure_ascii=False)})
            if len(rows) == _ROWS_PER_GROUP or num_chars >= _CHARS_PER_GROUP:
                flush()

        def flush() -> None:
            nonlocal num_chars
            if rows:
                file.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
                rows.clear()
                num_chars = 0

        yield add
        flush()


def copy_parquet(source: Path, num_rows: int, target: Path) -> None:
    """Copy the first rows of a Parquet file, which holds the text of one shard."""
    import pyarrow.parquet

    with replacing(target) as temporary:
        rows = pyarrow.parquet.read_table(source).slice(0, num_rows)
        pyarrow.parquet.write_table(rows, temporary, row_group_size=_ROWS_PER_GROUP, compression="zstd")


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array so that the file is never seen half-written."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)
