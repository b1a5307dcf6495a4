"""What the tests of readers share: three poems in every format, and what is read of files."""

import gzip
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from backports import zstd

from data.documents import Document
from data.reading.find_files import find_files
from data.reading.formats import read, split
from data.reading.records import BadInput, FileRead, Piece
from data.source_config import TextConfig

POEMS = [
    {"题目": "静夜思", "朝代": "唐", "作者": "李白", "内容": "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"},
    {"题目": "登鹳雀楼", "朝代": "唐", "作者": "王之涣", "内容": '白日依山尽，"黄河"入海流。\n欲穷千里目，更上一层楼。'},
    {"题目": "鹿柴", "朝代": "唐", "作者": "王维", "内容": "空山不见人，但闻人语响。\n返景入深林，复照青苔上。"},
]


TEXTS = [poem["内容"] for poem in POEMS]


JSONL = "".join(json.dumps(poem, ensure_ascii=False) + "\n" for poem in POEMS)


CSV = "题目,朝代,作者,内容\n" + "".join(",".join('"' + value.replace('"', '""') + '"' for value in poem.values()) + "\n" for poem in POEMS)


def parquet(rows: list[dict[str, Any]], row_group_size: int | None = None) -> bytes:
    return parquet_of(pa.Table.from_pylist(rows), row_group_size)


def parquet_of(table: pa.Table, row_group_size: int | None = None) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=row_group_size)
    return buffer.getvalue()


def arrow(rows: list[dict[str, Any]]) -> bytes:
    return arrow_of(pa.Table.from_pylist(rows))


def arrow_of(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def feather(rows: list[dict[str, Any]]) -> bytes:
    """The arrow file with an index, its columns compressed, in batches of two rows."""
    buffer, table = io.BytesIO(), pa.Table.from_pylist(rows)
    with pa.ipc.new_file(buffer, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table, max_chunksize=2)
    return buffer.getvalue()


CONTENTS = {
    "csv": CSV.encode(),
    "json": json.dumps(POEMS, ensure_ascii=False, indent=1).encode(),
    "jsonl": JSONL.encode(),
    "parquet": parquet(POEMS),
    "arrow": arrow(POEMS),
}


COMPRESS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress}


def whole(path: Path) -> Piece:
    return Piece(path, path.stat().st_size)


def read_all(*paths: Path | str, piece_bytes: int = 1 << 20, **reading: Any) -> list[Document | BadInput]:
    how = TextConfig(**reading)
    files = find_files([str(path) for path in paths])
    return [item for piece in split(files, how, piece_bytes) for item in read(piece, how) if not isinstance(item, FileRead)]


def bad(items: Iterable[Document | BadInput]) -> list[str]:
    return [item.reason for item in items if isinstance(item, BadInput)]


def texts(items: Iterable[Document | BadInput]) -> list[str]:
    return [item.text for item in items if isinstance(item, Document)]
