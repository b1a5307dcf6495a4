"""Records of Parquet and arrow files, a few hundred rows in memory at a time; pyarrow is imported on first use."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from data.packages import require
from data.reading.compression import endings, open_bytes
from data.reading.records import Found, Piece, as_record
from data.source_config import TextConfig

_BATCH_ROWS = 256
# https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format
_ARROW_INDEXED = b"ARROW1"


def row_groups(path: Path) -> list[int]:
    """The size in bytes of each row group of a Parquet file; none if it cannot be read, which its reader will explain."""
    with suppress(OSError), _pyarrow(path, "Parquet") as pyarrow:
        metadata = pyarrow.parquet.read_metadata(path)
        return [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]
    return []


def read_parquet(piece: Piece, _config: TextConfig) -> Iterator[Found]:
    """Yield the records of a piece's row groups.

    Raises:
        OSError: If the file is broken.
    """
    with _pyarrow(piece.path, "Parquet") as pyarrow, _seekable(piece.path) as file:
        table = pyarrow.parquet.ParquetFile(file)
        for group in range(piece.start, table.num_row_groups if piece.end is None else piece.end):
            yield from _numbered(f"{piece.path}[{group}:", table.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group]))


def read_arrow(piece: Piece, _config: TextConfig) -> Iterator[Found]:
    """Yield the records of an arrow file: a stream, as a saved Hugging Face dataset has it, or one with an index (Feather).

    Raises:
        OSError: If the file is broken.
    """
    path = piece.path
    with _pyarrow(path, "arrow file") as pyarrow:
        with open_bytes(path) as file:
            indexed = file.read(len(_ARROW_INDEXED)) == _ARROW_INDEXED
        with _seekable(path) if indexed else open_bytes(path) as file:
            reader = pyarrow.ipc.open_file(file) if indexed else pyarrow.ipc.open_stream(file)
            batches = map(reader.get_batch, range(reader.num_record_batches)) if indexed else reader
            parts = (batch.slice(at, _BATCH_ROWS) for batch in batches for at in range(0, batch.num_rows, _BATCH_ROWS))
            yield from _numbered(f"{path}[", parts)


@contextmanager
def _pyarrow(path: Path, format_name: str) -> Iterator[Any]:
    """Yield the package; what is broken in the file becomes an `OSError`."""
    require("pyarrow", f"{path}: reading it")
    import pyarrow.ipc
    import pyarrow.parquet

    try:
        yield pyarrow
    except (OSError, SystemError, pyarrow.ArrowException) as error:  # SystemError: a length in the file that is nonsense.
        if getattr(error, "errno", None) is not None:  # Of the system, not of the file.
            raise
        raise OSError(f"broken {format_name}: {error}") from None


def _numbered(where: str, batches: Iterable[Any]) -> Iterator[Found]:
    records = (record for batch in batches for record in _records(batch))
    return ((f"{where}{row}]", record, None) for row, record in enumerate(records))


def _records(batch: Any) -> list[dict[str, Any]]:
    names = batch.schema.names
    if len(set(names)) == len(names):
        with suppress(ValueError, OverflowError):  # `_values` knows a way.
            records: list[dict[str, Any]] = batch.to_pylist()
            return records
    return [as_record(list(zip(names, row, strict=True))) for row in zip(*map(_values, batch.columns), strict=True)]


def _values(column: Any) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):  # A time that Python's own types do not hold: to the nanosecond, or of the year 30000.
        values = column.cast("string").to_pylist()
    return values


def _seekable(path: Path) -> BinaryIO:
    """For formats that are read from their end: a compressed one goes through a nameless temporary file."""
    if not endings(path)[1]:
        return path.open("rb")
    copy = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115  # The caller closes it.
    with open_bytes(path) as file:
        shutil.copyfileobj(file, copy, 1 << 20)
    copy.seek(0)
    return copy
