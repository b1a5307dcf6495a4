"""Write a store's training tokens once more as Parquet rows of equal length, for programs that read those."""

from pathlib import Path
from typing import Any

from data.batches.token_stream import Stream
from data.packages import require
from data.store import token_store

FILE = "packed-train.parquet"
_ROWS_PER_GROUP = 1 << 14


def write(folder: Path, split: dict[str, Any], length: int) -> dict[str, int]:
    """Write rows of `length` ids, documents end to end, and return how many; only the unfinished last row is left out.

    Raises:
        DataError: If pyarrow is missing.
    """
    require("pyarrow", "data.pack")
    import pyarrow
    import pyarrow.parquet

    stream = Stream([token_store.Shard(folder / name) for part in split["streams"] for name in part["shards"]])
    num_rows, left_out = divmod(stream.num_tokens, length)
    schema = pyarrow.schema([("input_ids", pyarrow.list_(pyarrow.int32(), length))])
    written = 0
    with pyarrow.parquet.ParquetWriter(folder / FILE, schema, compression="zstd") as file:
        for first in range(0, num_rows, _ROWS_PER_GROUP):
            count = min(_ROWS_PER_GROUP, num_rows - first)
            ids = stream.read(first * length, count * length).astype("int32")
            rows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(ids), length)
            file.write_table(pyarrow.Table.from_arrays([rows], schema=schema))
            written += ids.size
    assert written + left_out == split["tokens"], (
        f"{written} packed and {left_out} left-out tokens are not the {split['tokens']} of the split"
    )
    return {"rows": num_rows, "length": length, "left_out_tokens": left_out}
