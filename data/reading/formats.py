"""The formats of files, what reads each of them, and the reading itself, one piece of work at a time.

A new format is an entry of `FORMATS` and a function beside those of `text_formats.py` or `columnar.py`. Each format is read as .gz or
.zst too (`compression.py`). Every record comes out as a `Document` or as a counted `BadInput`; nothing is dropped in silence. Which
files are meant is `find_files.py`; how records become documents is `records.py`.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.documents import DataError, Document, batched
from data.reading.columnar import read_arrow, read_parquet, row_groups
from data.reading.compression import endings
from data.reading.encodings import UnreadableError, detect
from data.reading.records import BadInput, FileRead, Found, Piece, from_record, from_text, printable
from data.reading.text_formats import read_csv, read_json, read_jsonl, read_text
from data.source_config import TextConfig


@dataclass(frozen=True)
class Format:
    """How a file is read whose name has one of its endings."""

    read: Callable[[Piece, TextConfig], Iterator[Found]]
    is_text: bool = True
    """Whether it is written in an encoding, which is found out before."""
    package: str = ""
    """What has to be installed for it beside requirements.txt."""


FORMATS = {
    **dict.fromkeys((".txt", ".md", ".py"), Format(read_text)),
    ".csv": Format(read_csv),
    ".json": Format(read_json),
    **dict.fromkeys((".jsonl", ".ndjson"), Format(read_jsonl)),
    ".parquet": Format(read_parquet, is_text=False, package="pyarrow"),
    ".arrow": Format(read_arrow, is_text=False, package="pyarrow"),
}


def split(files: Iterable[Path], config: TextConfig, piece_bytes: int = 256 << 20) -> list[Piece]:
    """Cut files into pieces of about `piece_bytes`, in order, where their format allows it without reading them.

    Plain jsonl and text by lines are cut at bytes, Parquet at row groups; the rest stays whole.
    """
    pieces = []
    for path in files:
        size = path.stat().st_size
        cut: list[Piece] = []
        if size > piece_bytes and endings(path) == (".parquet", ""):
            groups = batched(enumerate(row_groups(path)), lambda numbered: numbered[1], piece_bytes)
            cut = [Piece(path, sum(size for _, size in group), group[0][0], group[-1][0] + 1) for group in groups]
        elif size > piece_bytes and (encoding := _encoding_of_lines(path, config)):
            bounds = itertools.pairwise([*range(0, size, piece_bytes), size])
            cut = [Piece(path, end - start, start, end, encoding) for start, end in bounds]
        pieces += cut or [Piece(path, size)]
    return pieces


def read(piece: Piece, config: TextConfig) -> Iterator[Document | BadInput | FileRead]:
    """Yield what a piece holds, in the file's order, and at its end a `FileRead`.

    The same records come out however a file was cut into pieces.

    Raises:
        DataError: If a package is missing that the format needs, or the machine does not give the file. What is wrong with the
            file itself is yielded.
    """
    how = FORMATS.get(endings(piece.path)[0])
    num_records = num_bytes = num_bad_bytes = num_replaced = 0
    try:
        if how is None:
            known, kind = " ".join(FORMATS), "".join(endings(piece.path))
            raise UnreadableError(f'file type "{kind}" is not read; known: {known}, each also .gz or .zst')
        if how.is_text and not piece.encoding:
            piece = replace(piece, encoding=detect(piece.path))
        for found in how.read(piece, config):
            num_records += 1
            item = found if isinstance(found, BadInput) else _document(how.read is read_text, *found, config)
            if isinstance(item, Document):
                num_bytes += len(item.text.encode("utf-8"))
                num_replaced += item.num_replaced
            else:
                num_bad_bytes += item.num_bytes
            yield item
        if not num_records and not piece.start and piece.end is None:
            yield BadInput(str(piece.path), "holds no record")
    except UnreadableError as error:
        num_bad_bytes = piece.num_bytes
        yield BadInput(str(piece.path), str(error), num_bad_bytes)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # Of the system: the next start may find the file whole.
            way_on = "Mend it and start again: what is done stays done. Without this file all of it is prepared anew."
            raise DataError(f"{printable(str(piece.path))}: cannot be read ({error.strerror}). {way_on}") from error
        # How much is missing nobody knows: it counts as much as all that is there.
        rest = max(piece.num_bytes, num_bytes)
        num_bad_bytes += rest
        yield BadInput(str(piece.path), f"the rest of the file cannot be read: {error}", rest)
    # A record has more than its text; a compressed file holds more than its size.
    yield FileRead(printable(str(piece.path)), piece.encoding or None, max(piece.num_bytes, num_bytes + num_bad_bytes), num_replaced)


def _document(is_text: bool, source: str, record: Any, size: int | None, config: TextConfig) -> Document | BadInput:
    item = (from_text if is_text else from_record)(record, source, config)
    return replace(item, num_bytes=len(repr(record)) if size is None else size) if isinstance(item, BadInput) else item


def _encoding_of_lines(path: Path, config: TextConfig) -> str:
    """The encoding of a file that can be cut at its lines, nothing for any other."""
    ending, packed = endings(path)
    by_line = (read_jsonl, read_text) if config.text_documents == "line" else (read_jsonl,)
    encoding = ""
    if not packed and ending in FORMATS and FORMATS[ending].read in by_line:
        with contextlib.suppress(UnreadableError):
            encoding = detect(path)
    return "" if encoding.startswith(("utf-16", "utf-32")) else encoding  # There a line feed is several bytes.
