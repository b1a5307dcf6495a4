"""Read a JSON file of any size item by item."""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from data.reading.compression import MAX_RECORD_BYTES
from data.reading.records import JSON, BadInput, as_json

_CHUNK_CHARS = 1 << 20
# Behind the end of an object or a comma, or at the beginning of a line: an object that lacks its closing brace has none.
_NEXT_ITEM = re.compile(r"\}\s*,?\s*(?=\{)|,\s*(?=\{\s*\")|\n(?=\{)")


def json_items(file: io.TextIOBase) -> Iterator[Any | BadInput]:
    """Yield the items of a JSON array, or the single value, or several values or arrays one after the other.

    The standard library's C scanner parses one item at a time out of a sliding window, so memory is bounded by the
    largest item. After a broken item, for which there is a `BadInput` without a source, it goes on at the next place that
    looks like the beginning of an object.

    Raises:
        EOFError: At the end, if an array is not closed: the file breaks off, and nobody knows how much is missing.
    """
    window = _Window(file)
    in_array = window.skip("[")
    while window.skip(",") or not window.at_end():
        if in_array and window.skip("]"):
            in_array = window.skip("[")  # Files that were joined have one array behind the other.
            continue
        item = window.parse()
        if not isinstance(item, BadInput):
            yield item
            continue
        goes_on = window.resume()
        yield replace(item, num_bytes=window.skipped_bytes)
        window.skipped_bytes = 0
        if not goes_on:  # The file is read to its end, which may be that of the array all the same.
            in_array = in_array and not window.text.rstrip().endswith("]")
            break
    if in_array:
        raise EOFError(f"the array is not closed: it breaks off at character {window.position}")


class _Window:
    """A piece of a text file, with what was consumed cut off its front."""

    def __init__(self, file: io.TextIOBase) -> None:
        self._file = file
        self.text = ""
        self._at = 0
        self._dropped = 0
        self.skipped_bytes = 0  # What was passed over as broken, in bytes of UTF-8.

    @property
    def position(self) -> int:
        return self._dropped + self._at

    def at_end(self) -> bool:
        """Skip white space; whether nothing is left."""
        while True:
            while self._at < len(self.text) and self.text[self._at] in " \t\r\n\ufeff":
                self._at += 1
            if self._at < len(self.text):
                return False
            if not self._more():
                return True

    def skip(self, mark: str) -> bool:
        if self.at_end() or self.text[self._at] != mark:
            return False
        self._at += 1
        return True

    def parse(self) -> Any | BadInput:
        while True:
            try:
                item, end = JSON.raw_decode(self.text, self._at)
            except json.JSONDecodeError as error:
                # Only what breaks at the window's end may be whole further on.
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - 8
                if cut and len(self.text) - self._at > MAX_RECORD_BYTES:
                    return BadInput("", f"an item longer than {MAX_RECORD_BYTES >> 20} Mi characters at character {self.position}")
                where = self._dropped + error.pos
                if cut and self._more():
                    continue
                self._skip_to(min(max(where - self._dropped, self._at + 1), len(self.text)))
                return BadInput("", f"broken JSON at character {where}: {error.msg}")
            except (ValueError, RecursionError) as error:  # ValueError: a number of more digits than Python reads.
                where = self.position
                self._skip_to(self._at + 1)
                what = "JSON nested too deeply" if isinstance(error, RecursionError) else "JSON that Python does not read"
                return BadInput("", f"{what} at character {where}: {error}")
            # A number or literal that touches the window's end (3, of 3.5e+7) may go on behind it.
            if end >= len(self.text) - 2 and not isinstance(item, (dict, list, str)) and self._more():
                continue
            self._at = end
            return item

    def resume(self) -> bool:
        """Move to the next place that looks like the beginning of an object; whether there is one."""
        if self._at and self.text[self._at : self._at + 1] == "{":
            return True  # An object begins where none was expected: the one before lacks its closing brace.
        while (match := _NEXT_ITEM.search(self.text, self._at)) is None:
            self._skip_to(max(self._at, len(self.text) - 64))
            if not self._more():
                self._skip_to(len(self.text))
                return False
        self._skip_to(match.end())
        return True

    def _skip_to(self, at: int) -> None:
        self.skipped_bytes += len(self.text[self._at : at].encode("utf-8", "surrogatepass"))
        self._at = at

    def _more(self) -> bool:
        # Doubling keeps the repeated attempts at one long item linear.
        chunk = as_json(self._file.read(max(_CHUNK_CHARS, len(self.text) - self._at)))
        self._dropped += self._at
        self.text = self.text[self._at :] + chunk
        self._at = 0
        return bool(chunk)
