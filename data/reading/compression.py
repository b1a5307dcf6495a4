"""Bytes, lines and text out of files that are plain, gzipped or zstd-compressed, in constant memory.

Nothing is ever unpacked to disk. A file that breaks off raises `EOFError` or `OSError` after all that could be read
was given out.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from data.packages import require

MAX_RECORD_BYTES = 32 << 20
"""A longer line, record or text file is bad input: it would break the bound on memory."""

_BUFFER_BYTES = 1 << 18


def endings(path: Path) -> tuple[str, str]:
    """The ending that names a file's format, in small letters, and the one that says how it is compressed, or nothing."""
    packed = path.suffix.lower()
    return (path.with_suffix("").suffix.lower(), packed) if packed in (".gz", ".zst") else (packed, "")


def open_bytes(path: Path) -> io.BufferedReader:
    """Open for reading, decompressing by the last suffix (.gz, .zst). What is broken raises `OSError`, what breaks off `EOFError`.

    Raises:
        DataError: If backports.zstd is missing.
    """
    packed = endings(path)[1]
    if packed == ".gz":
        return io.BufferedReader(_Raw(gzip.open(path), zlib.error), _BUFFER_BYTES)
    if packed == ".zst":
        library = zstd(path)
        return io.BufferedReader(_Raw(library.open(path), library.ZstdError), _BUFFER_BYTES)
    return path.open("rb")


def zstd(wanted_by: Path | str) -> Any:
    """As `require`, the library for .zst, which is Python's own `compression.zstd` from 3.14 on."""
    return require("backports.zstd", f"{wanted_by}: .zst")


UNREADABLE = "\udcff"
"""Stands in a text for a place that cannot be decoded."""


def _escape(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError), "registered for decoding"
    return UNREADABLE, error.end


# Unlike surrogateescape it goes on in every codec: one lone surrogate for each place that cannot be decoded.
ESCAPE = "data.escape"
codecs.register_error(ESCAPE, _escape)


@contextmanager
def open_text(path: Path, encoding: str) -> Iterator[io.TextIOWrapper]:
    """Open as text; bytes that do not fit the encoding become lone surrogates.

    A file that breaks off ends there, and the error is raised when the block is left: text decoders would lose what
    they had read before it.
    """
    with open_bytes(path) as file:
        whole = _Raw(file, (OSError, EOFError), ends=True)
        with io.TextIOWrapper(io.BufferedReader(whole, _BUFFER_BYTES), encoding=encoding, errors=ESCAPE, newline="") as text:
            try:
                yield text
            except EOFError:  # Of whoever misses the rest; why it is missing says more.
                if whole.error is None:
                    raise
    if whole.error is not None:
        raise whole.error


def lines(file: BinaryIO, start: int, end: int | None) -> Iterator[tuple[int, bytes | None, int]]:
    """Yield (byte offset, line, its bytes) of the lines that begin in [start, end); None stands for a line that is too long.

    Neighbouring ranges give every line exactly once.
    """
    position = start
    if start:
        file.seek(start - 1)
        position = start - 1 + _skip_line(file)
    while (end is None or position < end) and (line := file.readline(MAX_RECORD_BYTES + 1)):
        fits, num_bytes = len(line) <= MAX_RECORD_BYTES, len(line)
        if not fits and not line.endswith(b"\n"):
            num_bytes += _skip_line(file)
        yield position, line if fits else None, num_bytes
        position += num_bytes


def text_line(file: io.TextIOBase) -> tuple[str | None, int]:
    """The next line, empty at the end, and its bytes in UTF-8; None stands for a line that is too long."""
    line = file.readline(MAX_RECORD_BYTES + 1)
    num_bytes = len(line.encode("utf-8", "surrogatepass"))
    if num_bytes <= MAX_RECORD_BYTES:
        return line, num_bytes
    while line and not line.endswith(("\n", "\r")):
        line = file.readline(1 << 20)
        num_bytes += len(line.encode("utf-8", "surrogatepass"))
    return None, num_bytes


def _skip_line(file: BinaryIO) -> int:
    skipped = 0
    while piece := file.readline(1 << 20):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


class _Raw(io.RawIOBase):
    """Another file, giving out all that can be read of it before an error."""

    def __init__(self, file: Any, broken: type[Exception] | tuple[type[Exception], ...], *, ends: bool = False) -> None:
        """Args: file: What is read. broken: Its errors: they become `OSError`. ends: They are kept in `error`, and the file ends there."""
        self._file = file
        self._broken = broken
        self._ends = ends
        self.error: Exception | None = None

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        if self.error is not None:
            return 0
        try:
            data = self._file.read1(len(buffer))
        except self._broken as error:
            if not self._ends:
                raise OSError(str(error)) from None
            self.error = error
            return 0
        buffer[: len(data)] = data
        return len(data)
