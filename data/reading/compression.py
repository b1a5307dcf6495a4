"""Bytes, lines and text out of files that are plain, gzipped or zstd-compressed, in constant memory.

Nothing is ever unpacked to disk. A file that breaks off raises `EOFError` or `OSError` after all that could be read
was given out: zstandard's own stream reader takes a truncated file for a complete one.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from data.documents import DataError
from data.reading.encodings import ESCAPE, detect, detect_head

MAX_RECORD_BYTES = 32 << 20
"""A longer line, record or text file is bad input: it would break the bound on memory."""

_COMPRESSED_CHUNK_BYTES = 4096  # The most that 4 KiB of zstd can hold is 128 MiB; larger chunks could hold gigabytes.
_HEAD_BYTES = 4 << 20


def open_bytes(path: Path) -> BinaryIO:
    """Open for reading, decompressing by the last suffix (.gz, .zst).

    Raises:
        DataError: If zstandard is missing.
    """
    if path.suffix == ".gz":
        return gzip.open(path)  # type: ignore[return-value]  # a GzipFile does all that is asked of it here
    if path.suffix == ".zst":
        return io.BufferedReader(_ZstdFile(path), 1 << 18)
    return path.open("rb")


@contextmanager
def open_text(path: Path) -> Iterator[io.TextIOWrapper]:
    """Open as text in the detected encoding; bytes that do not fit it become lone surrogates, which `is_whole` finds.

    A file that breaks off ends there, and the error is raised when the block is left: text decoders would lose what
    they had read before it.

    Raises:
        EncodingError: If it is not text.
    """
    with open_bytes(path) as file:
        whole = _UntilBroken(file)
        with io.TextIOWrapper(io.BufferedReader(whole, 1 << 18), encoding=detect_stream(path), errors=ESCAPE, newline="") as text:
            yield text
    if whole.error is not None:
        raise whole.error


def detect_stream(path: Path) -> str:
    """The encoding of a file, of a compressed one by its first 4 MiB.

    Raises:
        EncodingError: If it is not text.
    """
    status = path.stat()
    return _detect_stream(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _detect_stream(path: Path, _size: int, _changed: int) -> str:
    return detect(path) if path.suffix not in (".gz", ".zst") else detect_head(_head(path))


def _head(path: Path) -> bytes:
    head = b""
    with open_bytes(path) as file:
        try:
            while len(head) < _HEAD_BYTES and (more := file.read(1 << 18)):
                head += more
        except (EOFError, OSError):
            if not head:
                raise
    return head


def is_whole(text: str) -> bool:
    """Whether the text has no lone surrogates, which stand for undecodable bytes or half an escaped character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def lines(file: BinaryIO, start: int, end: int | None) -> Iterator[tuple[int, bytes | None, int]]:
    """Yield (byte offset, line, its bytes) of the lines that begin in [start, end); None stands for a line that is too long.

    Neighbouring ranges give every line exactly once.
    """
    position = start
    if start:
        file.seek(start - 1)
        position = start - 1 + _skip_line(file)
    while end is None or position < end:
        line = file.readline(MAX_RECORD_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_RECORD_BYTES:
            num_bytes = len(line) + (0 if line.endswith(b"\n") else _skip_line(file))
            yield position, None, num_bytes
            position += num_bytes
            continue
        yield position, line, len(line)
        position += len(line)


def _skip_line(file: BinaryIO) -> int:
    skipped = 0
    while piece := file.readline(1 << 20):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


class _UntilBroken(io.RawIOBase):
    """Another file up to where reading it fails, and the error."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(min(len(buffer), 1 << 14)) if self.error is None else b""
        except (OSError, EOFError, zlib.error) as error:
            self.error = error
            return 0
        buffer[: len(data)] = data
        return len(data)


class _ZstdFile(io.RawIOBase):
    """A .zst file of any number of frames that tells a truncated file from a complete one."""

    def __init__(self, path: Path) -> None:
        try:
            import zstandard
        except ImportError:
            raise DataError(f"{path}: reading .zst needs zstandard; run: .venv/bin/pip install -r requirements-data.txt") from None
        self._zstd = zstandard
        self._path = path
        self._file = path.open("rb")
        self._frame: Any = None
        self._ready = memoryview(b"")
        self._given = 0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = self._rest() or self._file.read(_COMPRESSED_CHUNK_BYTES)
            if not chunk:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError(f"compressed file is truncated: it breaks off after {self._given} decompressed bytes")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._zstd.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
            try:
                self._ready = memoryview(self._frame.decompress(chunk))
            except self._zstd.ZstdError as error:
                raise OSError(f"broken .zst after {self._given} decompressed bytes: {error}") from None
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        self._given += size
        return size

    def _rest(self) -> bytes:
        """What was read behind the end of a frame: the beginning of the next one."""
        if self._frame is None or not self._frame.eof:
            return b""
        rest: bytes = self._frame.unused_data
        self._frame = None
        return rest
