"""Read documents out of files of many formats, one piece of work at a time.

Text (txt, md, py), csv, json, jsonl, parquet and the arrow files of a saved Hugging Face dataset; each also as .gz or
.zst. Every record comes out as a `Document` or as a counted `BadInput`; nothing is dropped in silence. Which files are
meant is `files.py`; how bytes become records is `streams.py`, `json_items.py` and `columnar.py`; how records become
documents is `records.py`.
"""

import csv
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data.columnar import arrow_records, parquet_records, row_groups
from data.documents import Document
from data.encoding import EncodingError, decode
from data.json_items import BrokenItem, json_items
from data.records import BadInput, Reading, from_record, make_document
from data.streams import MAX_RECORD_BYTES, detect_stream, lines, open_bytes, open_text

FORMATS = {
    ".txt": "text", ".md": "text", ".py": "text", ".csv": "csv", ".json": "json",
    ".jsonl": "lines", ".ndjson": "lines", ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """Work for one reader: a file, or the part of it whose lines (row groups) begin in [start, end)."""

    path: Path
    start: int = 0
    end: int | None = None
    num_bytes: int = 0


def split(files: Iterable[Path], reading: Reading, piece_bytes: int = 256 << 20) -> list[Piece]:
    """Cut files into pieces of about `piece_bytes`, in order, where their format allows it without reading them.

    Plain jsonl and text by lines are cut at bytes, Parquet at row groups; the rest stays whole.
    """
    pieces = []
    for path in files:
        size = path.stat().st_size
        if size > piece_bytes and _is_splittable(path, reading):
            starts = range(0, size, piece_bytes)
            pieces += [Piece(path, start, min(start + piece_bytes, size), min(piece_bytes, size - start)) for start in starts]
        elif size > piece_bytes and path.suffix == ".parquet":
            pieces += _by_row_groups(path, piece_bytes)
        else:
            pieces.append(Piece(path, num_bytes=size))
    return pieces


def group(pieces: Iterable[Piece], group_bytes: int) -> list[list[Piece]]:
    """Join neighbouring pieces until a group has `group_bytes`, so that a thousand small files are not a thousand shards."""
    groups: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        if not groups or room <= 0:
            groups.append([])
            room = group_bytes
        groups[-1].append(piece)
        room -= piece.num_bytes
    return groups


def read(piece: Piece, reading: Reading) -> Iterator[Document | BadInput]:
    """Yield what a piece holds, in the file's order. The same records come out however a file was cut into pieces.

    Raises:
        DataError: If a package is missing that the format needs. What is wrong with the file itself is yielded.
    """
    reader = _READERS.get(_format(piece.path) or "")
    if reader is None:
        known = " ".join(FORMATS)
        yield BadInput(str(piece.path), f'file type "{piece.path.suffix}" is not read; known: {known}, each also .gz or .zst')
        return
    try:
        yield from reader(piece, reading)
    except EncodingError as error:
        yield BadInput(str(piece.path), str(error).removeprefix(f"{piece.path}: "))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        yield BadInput(str(piece.path), f"the rest of the file cannot be read: {error}")


def _format(path: Path) -> str | None:
    plain = path.with_suffix("") if path.suffix in (".gz", ".zst") else path
    return FORMATS.get(plain.suffix.lower())


def _is_splittable(path: Path, reading: Reading) -> bool:
    by_line = _format(path) == "lines" or (_format(path) == "text" and reading.text_documents == "line")
    if not by_line or path.suffix in (".gz", ".zst"):
        return False
    try:
        return not detect_stream(path).startswith("utf-16")  # There a line feed is two bytes.
    except EncodingError:
        return False


def _by_row_groups(path: Path, piece_bytes: int) -> list[Piece]:
    pieces = []
    start = num_bytes = 0
    sizes = row_groups(path)
    for index, size in enumerate(sizes, start=1):
        num_bytes += size
        if num_bytes >= piece_bytes or index == len(sizes):
            pieces.append(Piece(path, start, index, num_bytes))
            start, num_bytes = index, 0
    return pieces or [Piece(path)]


def _read_text(piece: Piece, reading: Reading) -> Iterator[Document | BadInput]:
    if reading.text_documents != "file":
        yield from _read_text_parts(piece, reading)
        return
    with open_bytes(piece.path) as file:
        data = file.read(MAX_RECORD_BYTES + 1)
    if len(data) > MAX_RECORD_BYTES:
        limit = MAX_RECORD_BYTES >> 20
        yield BadInput(str(piece.path), f'longer than {limit} MiB as one document; read it by "line" or "paragraph"')
        return
    text, _ = decode(data)
    yield make_document(text.replace("\r\n", "\n"), str(piece.path), {})


def _read_text_parts(piece: Piece, reading: Reading) -> Iterator[Document | BadInput]:
    part: list[str] = []
    begin = 0
    for offset, line in _decoded_lines(piece):
        if isinstance(line, BadInput):
            yield line
            continue
        blank = not line.strip()
        if not blank:
            begin = begin if part else offset
            part.append(line.rstrip("\r\n"))
        if part and (blank or reading.text_documents == "line"):
            yield make_document("\n".join(part), f"{piece.path}@{begin}", {})
            part = []
    if part:
        yield make_document("\n".join(part), f"{piece.path}@{begin}", {})


def _decoded_lines(piece: Piece) -> Iterator[tuple[int, str | BadInput]]:
    encoding = detect_stream(piece.path)
    if encoding.startswith("utf-16"):
        with open_text(piece.path) as file:
            yield from enumerate(file, start=1)
        return
    with open_bytes(piece.path) as raw:
        for offset, line in lines(raw, piece.start, piece.end):
            source = f"{piece.path}@{offset}"
            if line is None:
                yield offset, BadInput(source, f"a line longer than {MAX_RECORD_BYTES >> 20} MiB")
                continue
            try:
                yield offset, line.decode("utf-8-sig" if offset == 0 and encoding == "utf-8-sig" else encoding.removesuffix("-sig"))
            except UnicodeDecodeError as error:
                yield offset, BadInput(source, f"bytes that are not {encoding}: {error.reason}")


def _read_jsonl(piece: Piece, reading: Reading) -> Iterator[Document | BadInput]:
    for offset, line in _decoded_lines(piece):
        if isinstance(line, BadInput):
            yield line
        elif line.strip():
            source = f"{piece.path}@{offset}"
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                yield BadInput(source, f"broken JSON: {error}")
                continue
            yield from_record(record, source, reading)


def _read_json(piece: Piece, reading: Reading) -> Iterator[Document | BadInput]:
    with open_text(piece.path) as file:
        for index, item in enumerate(json_items(file)):
            source = f"{piece.path}[{index}]"
            yield BadInput(source, item.reason) if isinstance(item, BrokenItem) else from_record(item, source, reading)


def _read_csv(piece: Piece, reading: Reading) -> Iterator[Document | BadInput]:
    csv.field_size_limit(MAX_RECORD_BYTES)  # The default refuses a chapter of a novel.
    with open_text(piece.path) as file:
        rows = csv.reader(file, strict=True)
        header: list[str] | None = None
        for index in itertools.count():  # The header is number 0.
            source = f"{piece.path}[{index}]"
            try:
                row = next(rows)
            except StopIteration:
                break
            except csv.Error as error:
                yield BadInput(source, f"broken CSV near line {rows.line_num}: {error}")
                if header is None:  # Without the names of the fields the rest means nothing.
                    return
                continue
            if header is None:
                header = row
            elif row and len(row) != len(header):
                yield BadInput(source, f"{len(row)} fields near line {rows.line_num}, the header has {len(header)}")
            elif row:
                yield from_record(dict(zip(header, row, strict=True)), source, reading)
        if header is None:
            yield BadInput(str(piece.path), "no header line with the names of the fields")


def _read_parquet(piece: Piece, reading: Reading) -> Iterator[Document | BadInput]:
    return (from_record(record, source, reading) for source, record in parquet_records(piece.path, piece.start, piece.end))


def _read_arrow(piece: Piece, reading: Reading) -> Iterator[Document | BadInput]:
    return (from_record(record, source, reading) for source, record in arrow_records(piece.path))


_READERS = {"text": _read_text, "lines": _read_jsonl, "json": _read_json, "csv": _read_csv, "parquet": _read_parquet, "arrow": _read_arrow}
