"""What a reader is given and yields, and how a record of a file becomes a document or a counted problem."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.documents import Document
from data.reading.compression import UNREADABLE
from data.source_config import TextConfig

_DIGITS = re.compile(r"(?<![\w-])\d+")  # Not those of gb18030, Big5 and UTF-8.
_PLACE = re.compile(r"@\d+$|\[[\d:]+\]$")
# Undecodable bytes and halves of an escaped character are lone surrogates here; no text has zero characters, however they are written.
_BROKEN = re.compile("[\0\ud800-\udfff]")

# Our name of a field -> names it has in files, looked for in this order where `fields` of the configuration says nothing.
FIELD_NAMES: dict[str, tuple[str, ...]] = {
    "text": ("text", "content", "内容", "正文", "paragraphs"),
    "title": ("title", "题目", "标题", "題目", "標題"),
    "author": ("author", "作者"),
    "dynasty": ("dynasty", "朝代"),
}


SEVERAL = object()
"""The value of a field that a record has more than once, not always with the same value."""


@dataclass(frozen=True)
class BadInput:
    """A record, or the rest of a file, that could not be read."""

    source: str
    reason: str
    num_bytes: int = 0
    """How much of the input is lost with it."""

    @property
    def kind(self) -> str:
        """The reason without what differs from record to record, so that equal ones can be counted."""
        return _DIGITS.sub("N", self.reason.split(": ")[0])

    @property
    def file(self) -> str:
        """The file without the place in it."""
        return _PLACE.sub("", self.source)


@dataclass(frozen=True)
class Piece:
    """Work for one reader: a file, or the part of it whose lines (row groups) begin in [start, end)."""

    path: Path
    num_bytes: int
    start: int = 0
    end: int | None = None
    encoding: str = ""
    """Of a file that is cut at its lines; of others it is found when they are read."""


Found = tuple[str, Any, int | None] | BadInput
"""Where it stands, a record or a text, and its size in bytes; None if that is not known without writing it down."""


@dataclass(frozen=True)
class FileRead:
    """That a file, or a piece of one, was read to its end."""

    path: str
    encoding: str | None
    """None of a format that has none to detect."""
    num_bytes: int
    """What was read, unreadable records included."""
    num_replaced: int
    """Places that were not readable and are U+FFFD now."""


@dataclass(frozen=True)
class Remark:
    """Something that a person should know about what was read."""

    source: str
    text: str
    chars_left_out: int = 0


def as_record(fields: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of a record by their names, `SEVERAL` where a name has different values: a dict would keep the last in silence."""
    record = dict(fields)
    if len(record) < len(fields):
        record |= {name: SEVERAL for name, value in fields if value != record[name]}
    return record


JSON = json.JSONDecoder(object_pairs_hook=as_record)
"""Reads JSON into such records."""


def as_json(text: str) -> str:
    """What JSON is read of: a zero byte is bad as one is that cannot be decoded, but the parser would refuse the whole item for it."""
    return text.replace("\0", UNREADABLE)


def from_record(record: Any, source: str, config: TextConfig) -> Document | BadInput:
    """Pick the text and the other named fields out of a record; a text in a list of strings gets one line for each."""
    if not isinstance(record, dict):
        return BadInput(source, f"a {type(record).__name__} where an object with fields was expected")
    names = FIELD_NAMES | {ours: (theirs,) for ours, theirs in config.fields.items()}
    found = {ours: next((record[name] for name in theirs if record.get(name) is not None), None) for ours, theirs in names.items()}
    values = {name: value for name, value in found.items() if value is not None}
    if "text" not in values and any(name in record for name in names["text"]):
        return BadInput(source, "the text is null")
    if "text" not in values:
        return BadInput(source, f"no field {' or '.join(names['text'])}: it has {printable(', '.join(map(str, record)))[:200]}")
    for name in [name for name, value in values.items() if value is SEVERAL]:
        if name == "text" or name in config.fields or f"{{{name}}}" in (config.template or ""):
            return BadInput(source, f"the {name} is there more than once, with different values")
        del values[name]  # Nobody asks for it, and the text is whole.
    text = values.pop("text")
    if isinstance(text, list) and all(isinstance(part, str) for part in text):
        text = "\n".join(text)
    if not isinstance(text, str):
        return BadInput(source, f"the text is a {type(text).__name__}, not a string")
    return from_text(text, source, config, {name: _as_text(value) for name, value in values.items()})


def _as_text(value: Any) -> str:
    """What a field beside the text says: JSON as it is written there, a date or a decimal number of Parquet without quotes around it."""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list | int | float) else str(value)


def from_text(text: str, source: str, config: TextConfig, meta: Mapping[str, str] | None = None) -> Document | BadInput:
    """A document, unless it is empty or holds places that are broken and may not be replaced."""
    source = printable(source)
    if not text.strip():
        return BadInput(source, "empty document")
    meta = dict(meta or {})
    values = [text, *meta.values()]
    if all(map(_is_whole, values)):
        return Document(text, source, meta)
    if config.errors == "refuse":
        return BadInput(source, _what_is_broken(values))
    num_replaced = sum(len(_BROKEN.findall(value)) for value in values)
    text, *others = (_BROKEN.sub("\ufffd", value) for value in values)
    return Document(text, source, dict(zip(meta, others, strict=True)), num_replaced)


def _is_whole(text: str) -> bool:
    """Whether no place is broken; to search for one takes several times as long."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def printable(name: str) -> str:
    """A name as one line of UTF-8 can hold it: file names from other systems are often in another encoding."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8").replace("\n", "\\n")


def _what_is_broken(values: list[str]) -> str:
    places = [match.start() for match in _BROKEN.finditer(values[0])]
    where = f", the first in line {values[0].count(chr(10), 0, places[0]) + 1}" if places else " in a field beside the text"
    count = len(places) or 1
    return (
        "bytes that do not fit the file's encoding, zero characters, or half of an escaped character: "
        f'{count} place{"s"[: count > 1]}{where}; data.errors="replace" puts \ufffd there and keeps the rest'
    )
