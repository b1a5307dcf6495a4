"""The token store: shards in Megatron's .bin/.idx format and a checksummed manifest beside them.

Shards are written and read with DeepSpeed's own classes, so what Megatron's family of programs wrote can be read as well.
The only module of `data` that touches DeepSpeed, and only when a shard is opened or written.
"""

import contextlib
import importlib.util
import io
import struct
from functools import cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np

from data.documents import DataError
from ds_configs.atomic_files import digest, facts_of, put_in_place, read_object, temporary_name, with_ending, write_json, wrong_with

FORMAT = 3
MANIFEST = "manifest.json"


@cache
def _indexed_dataset() -> ModuleType:
    """DeepSpeed's module of Megatron's format, from its file: it needs torch only, while the whole package takes three seconds more."""
    package = importlib.util.find_spec("deepspeed")
    assert package is not None, "deepspeed is in requirements.txt"
    assert package.origin is not None, "deepspeed is a package"
    path = Path(package.origin).parent / "runtime/data_pipeline/data_sampling/indexed_dataset.py"
    loader = SourceFileLoader("data._deepspeed_indexed_dataset", str(path))
    module = ModuleType(loader.name)
    loader.exec_module(module)
    return module


class Shard:
    """One .bin/.idx pair, open for reading."""

    def __init__(self, prefix: Path) -> None:
        """Open the pair at `prefix`.

        Raises:
            DataError: If it is missing, no such pair, or shorter or longer than its index says.
        """
        index, ids = with_ending(prefix, ".idx"), with_ending(prefix, ".bin")
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed's reader prints its progress.
                self._dataset = _indexed_dataset().MMapIndexedDataset(str(prefix), skip_warmup=True)
            sizes = self._dataset.sizes
        except (OSError, AssertionError, LookupError, ValueError, OverflowError, MemoryError, struct.error) as error:
            raise DataError(f"{index}: not a readable Megatron index with its .bin beside it ({error or type(error).__name__}).") from error
        self.num_tokens = int(sizes.sum(dtype=np.int64))
        itemsize, rest = divmod(ids.stat().st_size, max(1, self.num_tokens))
        if self.dtype == np.uint64 and itemsize == np.dtype(np.uint16).itemsize:
            # Megatron-LM and gpt-neox write code 8 for uint16, which DeepSpeed reads as uint64: what fits the file's size is meant.
            self._dataset._index._dtype = np.uint16
        if rest or itemsize != np.dtype(self.dtype).itemsize:
            raise DataError(
                f"{ids}: {ids.stat().st_size} bytes, but its index says {self.num_tokens} tokens of {np.dtype(self.dtype).itemsize} bytes."
                " The file is truncated or belongs to another index."
            )

    def check_index(self, name: str) -> None:
        """Look at all of the index: sizes, places and documents must rise and fit each other, as every writer of the format makes them.

        Raises:
            DataError: If they do not, which no size of a file tells.
        """
        index = self._dataset._index
        sizes, documents = self._dataset.sizes.astype(np.int64), self._dataset.doc_idx
        wrong = None
        if len(sizes) and sizes.min() < 0:
            wrong = f"the size {sizes.min()} of sequence {int(sizes.argmin())}"
        elif not np.array_equal(index._pointers, (np.cumsum(sizes) - sizes) * np.dtype(self.dtype).itemsize):
            wrong = "sequences that do not lie end to end"
        elif not len(documents) or documents[0] != 0 or documents[-1] != len(sizes) or (np.diff(documents) < 0).any():
            wrong = f"documents that do not rise from 0 to {len(sizes)}, the number of sequences"
        if wrong:
            raise DataError(f"{name}.idx is damaged: it has {wrong}. Copy it again from where it was made, or make it again.")

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]] | type[np.signedinteger[Any]]:
        """The type of the ids."""
        return self._dataset.dtype

    @property
    def document_sizes(self) -> np.ndarray:
        """(documents,) tokens of each document, which may be several sequences of the index."""
        ends = np.concatenate([[0], np.cumsum(self._dataset.sizes, dtype=np.int64)])
        return np.diff(ends[self._dataset.doc_idx])

    def read(self, start: int, length: int) -> np.ndarray:
        """Return `length` ids from token `start` on, across document boundaries."""
        # Documents lie end to end in the file: an offset from the first one reaches every token. A copy, because DeepSpeed
        # unmaps the file when its object goes, and a view that is still there would then crash the process.
        return np.array(self._dataset.get(0, offset=start, length=length))


class ShardWriter:
    """Writes one .bin/.idx pair. It appears whole when the `with` block ends well, and not at all without a document."""

    def __init__(self, prefix: Path, vocab_size: int) -> None:
        self._finals = [with_ending(prefix, ending) for ending in (".bin", ".idx")]
        self._temporaries = [temporary_name(path) for path in self._finals]
        self._builder: Any = None
        self.dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32  # The smallest of DeepSpeed's types that holds every id.
        self.num_documents = 0
        self.num_tokens = 0

    def __enter__(self) -> Self:
        return self

    def add(self, ids: np.ndarray) -> None:
        """Write one document of ids."""
        if self._builder is None:
            self._builder = _indexed_dataset().MMapIndexedDatasetBuilder(str(self._temporaries[0]), dtype=self.dtype)
        self._builder.add_item_numpy(ids)
        self._builder.end_document()
        self.num_documents += 1
        self.num_tokens += len(ids)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None and self._builder is not None:
                self._builder.finalize(str(self._temporaries[1]))
                for temporary, final in zip(self._temporaries, self._finals, strict=True):
                    put_in_place(temporary, final)
        finally:
            for path in self._temporaries:
                path.unlink(missing_ok=True)


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Close a store: record size and hash of all its files, and a checksum over the record itself."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    record = {path.relative_to(folder).as_posix(): facts_of(path) for path in files}
    manifest = {"format": FORMAT, **content, "files": record}
    write_json(folder / MANIFEST, {**manifest, "checksum": digest(manifest)})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a store's manifest.

    Raises:
        ValueError: If it cannot be read or is not as it was written.
    """
    path = folder / MANIFEST
    advice = ". Delete the folder and prepare the data again."
    manifest = read_object(path, advice)
    checksum = manifest.pop("checksum", None)
    if digest(manifest) != checksum:
        raise DataError(f"{path} was changed after it was written: its checksum does not fit{advice}")
    if manifest["format"] != FORMAT:
        raise DataError(f"{path}: a store of format {manifest['format']}; this version reads format {FORMAT}. Prepare the data again.")
    return manifest


def verify(folder: Path, manifest: dict[str, Any], *, max_hashed_bytes: int | None = None, share: slice = slice(None)) -> None:
    """Compare a store's files with its manifest.

    Args:
        folder: The store.
        manifest: As `read_manifest` returned it.
        max_hashed_bytes: Larger files are compared by size only; None hashes all.
        share: Which of the files, in the order of the manifest, are hashed here; the sizes of all are compared.

    Raises:
        DataError: At the first file that is missing, truncated or changed.
    """
    hashed = set(list(manifest["files"])[share])
    for name, wanted in manifest["files"].items():
        small = max_hashed_bytes is None or wanted["bytes"] <= max_hashed_bytes
        if problem := wrong_with(folder / name, wanted, hashed=name in hashed and small):
            raise DataError(f"{problem}. Delete {folder} and prepare the data again.")
