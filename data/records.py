"""A record of a file becomes a document, or a counted problem."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from data.documents import Document
from data.streams import is_whole

# Our name of a field -> names it has in files, looked for in this order.
FIELD_NAMES = {
    "text": ("text", "content", "内容", "正文", "paragraphs"),
    "title": ("title", "题目", "标题", "題目", "標題"),
    "author": ("author", "作者"),
    "dynasty": ("dynasty", "朝代"),
}


@dataclass(frozen=True)
class BadInput:
    """A record, or the rest of a file, that could not be read."""

    source: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How records become documents."""

    fields: Mapping[str, str] = field(default_factory=dict)
    """Our name of a field (text, or any name that lands in `meta`) -> its name in the file. Beside it `FIELD_NAMES` apply."""
    text_documents: Literal["file", "line", "paragraph"] = "file"
    """What a document is in a text file: all of it, each line, or what stands between blank lines."""


def from_record(record: Any, source: str, reading: Reading) -> Document | BadInput:
    """Pick the text and the other named fields out of a record; a text in a list of strings gets one line for each."""
    if not isinstance(record, dict):
        return BadInput(source, f"a {type(record).__name__} where an object with fields was expected")
    values = {}
    for name in {**FIELD_NAMES, **reading.fields}:
        candidates = (reading.fields[name],) if name in reading.fields else FIELD_NAMES[name]
        found = next((candidate for candidate in candidates if record.get(candidate) is not None), None)
        if found is not None:
            values[name] = record[found]
    if "text" not in values:
        wanted = reading.fields.get("text") or " or ".join(FIELD_NAMES["text"])
        return BadInput(source, f"no field {wanted}; it has: {', '.join(map(str, record))[:200]}")
    text = values.pop("text")
    if isinstance(text, list) and all(isinstance(part, str) for part in text):
        text = "\n".join(text)
    if not isinstance(text, str):
        return BadInput(source, f"the text is a {type(text).__name__}, not a string")
    meta = {name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str) for name, value in values.items()}
    return make_document(text, source, meta)


def make_document(text: str, source: str, meta: dict[str, str]) -> Document | BadInput:
    """A document, unless it is empty or holds characters that cannot be written as UTF-8."""
    if not text.strip():
        return BadInput(source, "empty document")
    if not (is_whole(text) and all(is_whole(value) for value in meta.values())):
        return BadInput(source, "bytes that do not fit the file's encoding, or half of an escaped character")
    return Document(text, source, meta)
