import struct

import numpy as np
import pytest


def _write_as_megatron(prefix, sequences, documents, code, dtype):
    """A .bin/.idx pair as Megatron-LM and gpt-neox write it: by the published layout, byte for byte."""
    prefix.with_suffix(".bin").write_bytes(b"".join(np.array(ids, dtype=dtype).tobytes() for ids in sequences))
    sizes = [len(ids) for ids in sequences]
    pointers = np.cumsum([0, *sizes[:-1]], dtype=np.int64) * np.dtype(dtype).itemsize
    prefix.with_suffix(".idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, code, len(sizes), len(documents))
        + np.array(sizes, dtype=np.int32).tobytes()
        + pointers.tobytes()
        + np.array(documents, dtype=np.int64).tobytes()
    )


@pytest.fixture(scope="session")
def write_as_megatron():
    return _write_as_megatron
