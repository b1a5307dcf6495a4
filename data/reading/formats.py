"""Read documents out of files of many formats, one piece of work at a time.

Text (txt, md, py), csv, json, jsonl, parquet and arrow files, such as those of a saved Hugging Face dataset; each also as .gz or
.zst. Every record comes out as a `Document` or as a counted `BadInput`; nothing is dropped in silence. Which files are
meant is `find_files.py`; how bytes become records is `compression.py`, `json_items.py` and `columnar.py`; how records become
documents is `records.py`. A new format is a reader in `_READERS`; a binary one is also named in `read`, where encodings are detected.
"""

import contextlib
import csv
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.documents import DataError, Document, batched
from data.reading.columnar import arrow_records, parquet_records, row_groups
from data.reading.compression import MAX_RECORD_BYTES, decode, endings, lines, open_bytes, open_text, text_line
from data.reading.encodings import UnreadableError, detect
from data.reading.json_items import json_items
from data.reading.records import JSON, BadInput, FileRead, Found, as_record, from_record, from_text, printable
from data.source_config import TextConfig


@dataclass(frozen=True)
class Piece:
    """Work for one reader: a file, or the part of it whose lines (row groups) begin in [start, end)."""

    path: Path
    num_bytes: int
    start: int = 0
    end: int | None = None
    encoding: str = ""
    """Of a file that is cut at its lines; of others it is found when they are read."""


def split(files: Iterable[Path], config: TextConfig, piece_bytes: int = 256 << 20) -> list[Piece]:
    """Cut files into pieces of about `piece_bytes`, in order, where their format allows it without reading them.

    Plain jsonl and text by lines are cut at bytes, Parquet at row groups; the rest stays whole.
    """
    pieces = []
    for path in files:
        size = path.stat().st_size
        cut: list[Piece] = []
        if size > piece_bytes and path.suffix == ".parquet":
            cut = _by_row_groups(path, piece_bytes)
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
    ending = endings(piece.path)[0]
    reader = _READERS.get(ending)
    num_records = num_bytes = num_bad_bytes = num_replaced = 0
    try:
        if reader is None:
            known, kind = " ".join(_READERS), "".join(endings(piece.path))
            raise UnreadableError(f'file type "{kind}" is not read; known: {known}, each also .gz or .zst')
        if ending not in (".parquet", ".arrow") and not piece.encoding:
            piece = replace(piece, encoding=detect(piece.path))
        for found in reader(piece, config):
            num_records += 1
            item = found if isinstance(found, BadInput) else _document(reader is _read_text, *found, config)
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
            way_on = "Mend it, or take the file away, and start again: what is done stays done."
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
    reader = _READERS.get(ending)
    encoding = ""
    if not packed and (reader is _read_jsonl or (reader is _read_text and config.text_documents == "line")):
        with contextlib.suppress(UnreadableError):
            encoding = detect(path)
    return "" if encoding.startswith(("utf-16", "utf-32")) else encoding  # There a line feed is several bytes.


def _by_row_groups(path: Path, piece_bytes: int) -> list[Piece]:
    groups = batched(enumerate(row_groups(path)), lambda numbered: numbered[1], piece_bytes)
    return [Piece(path, sum(size for _, size in group), group[0][0], group[-1][0] + 1) for group in groups]


def _read_text(piece: Piece, config: TextConfig) -> Iterator[Found]:
    if config.text_documents != "file":
        yield from _read_text_parts(piece, by_line=config.text_documents == "line")
        return
    with open_bytes(piece.path) as file:
        data = file.read(MAX_RECORD_BYTES + 1)
    if len(data) > MAX_RECORD_BYTES:
        limit = MAX_RECORD_BYTES >> 20
        reason = f'longer than {limit} MiB as one document; read it by data.text_documents="line" or "paragraph", or cut the file'
        yield BadInput(str(piece.path), reason, piece.num_bytes)
        return
    yield str(piece.path), decode(data, piece.encoding).replace("\r\n", "\n"), len(data)


def _read_text_parts(piece: Piece, by_line: bool) -> Iterator[Found]:
    part: list[str] = []
    begin = ""
    for found in itertools.chain(_decoded_lines(piece), [("", "", 0)]):  # The end of the file ends a paragraph as a blank line does.
        if isinstance(found, BadInput):
            yield found
            continue
        source, line, _ = found
        if line.strip():
            begin = begin if part else source
            part.append(line.rstrip("\r\n"))
        if part and (by_line or not line.strip()):
            text = "\n".join(part)
            yield begin, text, len(text.encode("utf-8", "surrogatepass"))
            part = []


def _decoded_lines(piece: Piece) -> Iterator[tuple[str, str, int] | BadInput]:
    """Yield the lines of a piece: lone surrogates stand for bytes that do not fit the encoding."""
    if piece.encoding.startswith(("utf-16", "utf-32")):
        with open_text(piece.path, piece.encoding) as file:
            for number, (line, num_bytes) in enumerate(iter(lambda: text_line(file), ("", 0)), start=1):
                yield _line(f"{piece.path}@{number}", line, num_bytes)
        return
    with open_bytes(piece.path) as raw:
        for offset, data, num_bytes in lines(raw, piece.start, piece.end):
            codec = piece.encoding if offset == 0 else piece.encoding.removesuffix("-sig")
            yield _line(f"{piece.path}@{offset}", None if data is None else decode(data, codec), num_bytes)


def _line(source: str, line: str | None, num_bytes: int) -> tuple[str, str, int] | BadInput:
    return BadInput(source, f"a line longer than {MAX_RECORD_BYTES >> 20} MiB", num_bytes) if line is None else (source, line, num_bytes)


def _read_jsonl(piece: Piece, _config: TextConfig) -> Iterator[Found]:
    for found in _decoded_lines(piece):
        if isinstance(found, BadInput):
            yield found
            continue
        source, line, num_bytes = found
        if line.strip():
            try:
                yield source, JSON.decode(line), num_bytes
            except (ValueError, RecursionError) as error:  # ValueError: broken JSON, or a number of more digits than Python reads.
                yield BadInput(source, f"broken JSON: {error}", num_bytes)


def _read_json(piece: Piece, _config: TextConfig) -> Iterator[Found]:
    with open_text(piece.path, piece.encoding) as file:
        for index, item in enumerate(json_items(file)):
            source = f"{piece.path}[{index}]"
            yield replace(item, source=source) if isinstance(item, BadInput) else (source, item, None)


def _read_csv(piece: Piece, _config: TextConfig) -> Iterator[Found]:
    csv.field_size_limit(MAX_RECORD_BYTES)  # The default refuses a chapter of a novel.
    num_bytes = begin = 0

    def next_line() -> str:
        nonlocal num_bytes
        line, size = text_line(file)
        num_bytes += size
        if line is None or num_bytes - begin > MAX_RECORD_BYTES:
            raise csv.Error(f"a row longer than {MAX_RECORD_BYTES >> 20} MiB; what is left of it is read as rows of its own")
        return line

    with open_text(piece.path, piece.encoding) as file:
        rows = csv.reader(iter(next_line, ""), strict=True)  # Such an iterator goes on behind an error.
        header: list[str] = []
        for index in itertools.count():  # The header is number 0.
            source, begin = f"{piece.path}[{index}]", num_bytes
            try:
                row = next(rows)
            except StopIteration:
                break
            except csv.Error as error:
                yield BadInput(source, f"broken CSV near line {rows.line_num}: {error}", num_bytes - begin)
                if index == 0:  # Without the names of the fields the rest means nothing.
                    return
                continue
            if index == 0:
                header = row
            elif row and len(row) != len(header):
                reason = f"{len(row)} fields near line {rows.line_num}, the header has {len(header)}"
                yield BadInput(source, reason, num_bytes - begin)
            elif row:
                yield source, as_record(list(zip(header, row, strict=True))), num_bytes - begin
        if index == 0:
            yield BadInput(str(piece.path), "no header line with the names of the fields")


# By the ending of the file's name.
_READERS: dict[str, Callable[[Piece, TextConfig], Iterator[Found]]] = {
    **dict.fromkeys((".txt", ".md", ".py"), _read_text),
    ".csv": _read_csv,
    ".json": _read_json,
    **dict.fromkeys((".jsonl", ".ndjson"), _read_jsonl),
    ".parquet": lambda piece, _: parquet_records(piece.path, piece.start, piece.end),
    ".arrow": lambda piece, _: arrow_records(piece.path),
}
