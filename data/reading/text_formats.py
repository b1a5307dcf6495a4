"""Records of text files: whole files, lines and paragraphs, JSON lines, JSON, CSV. Binary ones are `columnar.py`."""

import csv
import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import replace

from data.reading.compression import ESCAPE, MAX_RECORD_BYTES, lines, open_bytes, open_text, text_line
from data.reading.json_items import json_items
from data.reading.records import JSON, BadInput, Found, Piece, as_json, as_record
from data.source_config import TextConfig


def read_text(piece: Piece, config: TextConfig) -> Iterator[Found]:
    """Yield the text of a file, or of each of its lines or paragraphs."""
    if config.text_documents != "file":
        yield from _read_text_parts(piece, by_line=config.text_documents == "line")
        return
    with open_bytes(piece.path) as file:
        data = file.read(MAX_RECORD_BYTES + 1)
    if len(data) > MAX_RECORD_BYTES:
        advice = 'as one document; read it by data.text_documents="line" or "paragraph", or cut the file'
        yield BadInput(str(piece.path), f"longer than {MAX_RECORD_BYTES >> 20} MiB {advice}", piece.num_bytes)
        return
    yield str(piece.path), re.sub("\r(?!\n)", "\n", data.decode(piece.encoding, ESCAPE).replace("\r\n", "\n")), len(data)


def _read_text_parts(piece: Piece, by_line: bool) -> Iterator[Found]:
    part: list[str] = []
    begin, size = "", 0
    for found in itertools.chain(_decoded_lines(piece), [("", "", 0)]):  # The end of the file ends a paragraph as a blank line does.
        if isinstance(found, BadInput):
            yield found
            continue
        source, text, num_bytes = found
        cut = text.rstrip("\r\n").split("\r")  # In files of old Macs a carriage return ends a line by itself.
        for line in cut:
            if line.strip():
                begin = begin if size else source
                size += max(1, num_bytes // len(cut))
                part.append(line)
                if size > MAX_RECORD_BYTES:
                    part.clear()
            if size and (by_line or not line.strip()):
                yield (begin, "\n".join(part), size) if part else _too_long(begin, "a paragraph", size)
                part, size = [], 0


def _decoded_lines(piece: Piece) -> Iterator[tuple[str, str, int] | BadInput]:
    """Yield the lines of a piece: lone surrogates stand for bytes that do not fit the encoding."""
    if piece.encoding.startswith(("utf-16", "utf-32")):
        with open_text(piece.path, piece.encoding) as file:
            for number, (line, num_bytes) in enumerate(iter(lambda: text_line(file), ("", 0)), start=1):
                source = f"{piece.path}@{number}"
                yield _too_long(source, "a line", num_bytes) if line is None else (source, line, num_bytes)
        return
    with open_bytes(piece.path) as raw:
        for offset, data, num_bytes in lines(raw, piece.start, piece.end):
            codec = piece.encoding if offset == 0 else piece.encoding.removesuffix("-sig")
            source = f"{piece.path}@{offset}"
            yield _too_long(source, "a line", num_bytes) if data is None else (source, data.decode(codec, ESCAPE), num_bytes)


def _too_long(source: str, what: str, num_bytes: int) -> BadInput:
    return BadInput(source, f"{what} longer than {MAX_RECORD_BYTES >> 20} MiB", num_bytes)


def read_jsonl(piece: Piece, _config: TextConfig) -> Iterator[Found]:
    """Yield the record of each line."""
    for found in _decoded_lines(piece):
        if isinstance(found, BadInput):
            yield found
            continue
        source, line, num_bytes = found
        if line.strip():
            try:
                yield source, JSON.decode(as_json(line)), num_bytes
            except (ValueError, RecursionError) as error:  # ValueError: broken JSON, or a number of more digits than Python reads.
                yield BadInput(source, f"broken JSON: {error}", num_bytes)


def read_json(piece: Piece, _config: TextConfig) -> Iterator[Found]:
    """Yield the items of a file."""
    with open_text(piece.path, piece.encoding) as file:
        for index, item in enumerate(json_items(file)):
            source = f"{piece.path}[{index}]"
            yield replace(item, source=source) if isinstance(item, BadInput) else (source, item, None)


def read_csv(piece: Piece, _config: TextConfig) -> Iterator[Found]:
    """Yield the rows below the header, which names their fields."""
    csv.field_size_limit(MAX_RECORD_BYTES)  # The default refuses a chapter of a novel.
    num_bytes = begin = 0

    def next_line() -> str:
        nonlocal num_bytes
        line = file.readline(MAX_RECORD_BYTES + 1)
        size = len(line.encode("utf-8", "surrogatepass"))
        if num_bytes - begin + size > MAX_RECORD_BYTES:
            num_bytes += _skip_row(file, line, in_quotes=num_bytes > begin)  # Only in quotes a row goes on in another line.
            raise csv.Error(f"a row longer than {MAX_RECORD_BYTES >> 20} MiB")
        num_bytes += size
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


def _skip_row(file: io.TextIOBase, piece: str, in_quotes: bool) -> int:
    """Pass over the rest of a row of CSV, of which `piece` was read last; returns the bytes of both.

    Quotes open a field behind a comma or the beginning of the row; two in a row, inside a field, stand for one and close nothing.
    """
    num_bytes = 0
    before, turned = ",", -2  # The character in front of the piece; where quotes were last opened or closed.
    while piece:
        num_bytes += len(piece.encode("utf-8", "surrogatepass"))
        for at in (quote.start() for quote in re.finditer('"', piece)):
            if in_quotes or at == turned + 1 or (piece[at - 1] if at else before) == ",":
                in_quotes, turned = not in_quotes, at
        if piece.endswith(("\n", "\r")) and not in_quotes:
            break
        before, turned = piece[-1], turned - len(piece)
        piece = file.readline(1 << 20)
    return num_bytes
