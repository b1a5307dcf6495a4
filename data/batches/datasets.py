"""Open a token store as what training and validation read: a training set, and a validation set for each source.

The order is a pure function of (seed, sample index): every rank of every topology computes the same, and resuming at sample
i needs the number i only. How the store came to be is `prepare.py`; how samples are cut and ordered is `windows.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.batches.permutation import mix
from data.batches.token_stream import Stream
from data.batches.windows import DocumentWindows, StreamWindows, TrainingSet, Windows, row_bounds
from data.config import DataConfig
from data.documents import DataError
from data.store import token_store
from data.store.fits_config import check_store
from data.store.identity import text_of
from data.store.registry import find_store, why_not
from data.tokenizers import tokenizer_folder
from ds_configs.atomic_files import allow_open_files

if TYPE_CHECKING:
    from torch import Tensor

IGNORED_LABEL = -100  # What the loss leaves out.
# Whoever opens a store up to this size hashes it, the ranks of a job together. Of a larger one only small files (tokenizer,
# indexes) are hashed, the others compared by size; `data.prepare` hashes all.
_MAX_HASHED_BYTES = 512 << 20
_SMALL_BYTES = 4 << 20


class ValidationSet:
    """The held-out tokens in rows that do not overlap: every token is scored exactly once.

    The end-of-text token stands before the first one, so that it too is predicted from something.
    """

    def __init__(self, stream: Stream, config: DataConfig, tokenizer: tokenizer_folder.Tokenizer, total_chars: int | None) -> None:
        self._stream = stream
        self._seq_length = config.seq_length
        self._tokenizer = tokenizer
        self._total_chars = total_chars
        self.num_tokens = stream.num_tokens
        self._document_starts = stream.document_starts()
        self._bounds = row_bounds(config.windows, self._document_starts, stream.num_tokens, config.seq_length)
        self.num_rows = len(self._bounds) - 1

    def num_batches(self, *, num_replicas: int, micro_batch: int, max_batches: int | None = None) -> int:
        """Batches that each replica needs so that all of them together score every token, or `max_batches` over all replicas."""
        return -(-self._num_rows(micro_batch, max_batches) // (num_replicas * micro_batch))

    def batches(
        self, *, replica: int, num_replicas: int, micro_batch: int, max_batches: int | None = None
    ) -> Iterator[tuple["Tensor", "Tensor"]]:
        """Yield (inputs, labels), each (B, T) int64: as many for every replica, all of the same shape.

        Batch k of replica r holds rows (k * num_replicas + r) * micro_batch and the following. Labels that are not to be
        scored, those past the end of the row, of the split, or of the first `max_batches` batches, are -100: any number of
        replicas scores the same rows.
        """
        import torch

        num_rows = self._num_rows(micro_batch, max_batches)
        for number in range(self.num_batches(num_replicas=num_replicas, micro_batch=micro_batch, max_batches=max_batches)):
            first = (number * num_replicas + replica) * micro_batch
            rows = [self._row(first + row if first + row < num_rows else self.num_rows) for row in range(micro_batch)]
            yield torch.from_numpy(np.stack([inputs for inputs, _ in rows])), torch.from_numpy(np.stack([labels for _, labels in rows]))

    def num_scored(self, *, micro_batch: int = 1, max_batches: int | None = None) -> int:
        """Tokens that `batches` scores, over all replicas."""
        return int(self._bounds[self._num_rows(micro_batch, max_batches)])

    def num_chars(self, *, micro_batch: int = 1, max_batches: int | None = None) -> int:
        """Characters of the text that `batches` scores, over all replicas."""
        scored = self.num_scored(micro_batch=micro_batch, max_batches=max_batches)
        if scored == self.num_tokens and self._total_chars is not None:
            return self._total_chars
        block = 1 << 20  # Bounds the memory; a held-out split may have tens of millions of tokens.
        blocks = (self._stream.read(start, min(block, scored - start)) for start in range(0, scored, block))
        num_before = self._tokenizer.chars_before * int(np.searchsorted(self._document_starts, scored))
        return sum(int(self._tokenizer.chars_per_id[ids].sum()) for ids in blocks) - num_before

    def _num_rows(self, micro_batch: int, max_batches: int | None) -> int:
        return self.num_rows if max_batches is None else min(self.num_rows, max_batches * micro_batch)

    def _row(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(T,) inputs and (T,) labels of a row; one past the last is all padding."""
        start, end = self._bounds[[min(number, self.num_rows), min(number + 1, self.num_rows)]].tolist()
        length = end - start
        inputs = np.full(self._seq_length, self._tokenizer.eos_id, dtype=np.int64)
        labels = np.full(self._seq_length, IGNORED_LABEL, dtype=np.int64)
        if length:
            labels[:length] = self._stream.read(start, length)
            inputs[1:length] = labels[: length - 1]
            if start:
                inputs[0] = self._stream.read(start - 1, 1)[0]
        return inputs, labels


@dataclass(frozen=True)
class Datasets:
    """An open token store: what training and validation read, with the tokenizer that made it."""

    folder: Path
    manifest: dict[str, Any]
    config: DataConfig
    seed: int

    @property
    def text(self) -> dict[str, str]:
        """What a run, its checkpoints and its exports record of it."""
        return text_of(self.manifest)

    @cached_property
    def tokenizer(self) -> tokenizer_folder.Tokenizer:
        """The tokenizer of the store."""
        return tokenizer_folder.load(self.folder / "tokenizer")

    @cached_property
    def train(self) -> TrainingSet:
        """The training split."""
        parts = self.manifest["splits"]["train"]["streams"]
        streams = [self._stream(part) for part in parts]
        # A single stream is ordered by the run's seed itself.
        seeds = [mix(self.seed, part["source"]) if part["source"] else self.seed for part in parts]
        windows = [self._windows(stream, seed) for stream, seed in zip(streams, seeds, strict=True)]
        weights = [self.config.all_sources[part["source"]].weight or 1.0 for part in parts] if len(parts) > 1 else [1.0]
        return TrainingSet(windows, weights, self.seed)

    @cached_property
    def valid(self) -> ValidationSet:
        """The held-out split, its sources one behind the other."""
        split = self.manifest["splits"]["valid"]
        first, *others = split["streams"]
        part = {"shards": [name for part in split["streams"] for name in part["shards"]]} if others else first
        return ValidationSet(self._stream(part), self.config, self.tokenizer, split["chars"])

    @cached_property
    def valid_sources(self) -> dict[str, ValidationSet]:
        """The held-out part of each source, by its name; one where there is but one."""
        parts = self.manifest["splits"]["valid"]["streams"]
        if len(parts) == 1:
            return {parts[0]["name"]: self.valid}
        names = self.config.source_names
        return {names[part["source"]]: ValidationSet(self._stream(part), self.config, self.tokenizer, part.get("chars")) for part in parts}

    def _windows(self, stream: Stream, seed: int) -> Windows:
        if self.config.windows == "documents":
            return DocumentWindows(stream, self.config.seq_length, seed)
        return StreamWindows(stream, self.config.seq_length, seed, self.config.tail)

    def _stream(self, part: dict[str, Any]) -> Stream:
        return open_stream(self.folder, self.manifest, part)


def open_stream(folder: Path, manifest: dict[str, Any], part: dict[str, Any]) -> Stream:
    """Open one of the streams that the manifest of the store in `folder` names for a split."""
    if "pair" in manifest:
        return Stream([token_store.Shard(Path(manifest["pair"]["prefix"]))], *part["range"])
    # A mapped shard keeps two open.
    allow_open_files(2 * len(part["shards"]), f"a store of {len(part['shards'])} shards", ", or prepare with a larger data.shard_mib")
    return Stream([token_store.Shard(folder / name) for name in part["shards"]])


def open_datasets(config: DataConfig, seed: int, config_path: str | Path = "CONFIG", share: slice = slice(None)) -> Datasets:
    """Open the store that `config` was prepared as. No raw file is looked at.

    Args:
        config: The data section.
        seed: Of the run: the order of the training windows follows from it.
        config_path: Named in the message when there is no store yet.
        share: Which of the store's files are hashed here, if others hash the rest (see `token_store.verify`).

    Raises:
        ValueError: If there is no such store, it is damaged, or it is shorter than one window.
    """
    found = find_store(config)
    if found is None:
        raise DataError(
            f'no token store for "{config.name}" was prepared with these keys in {config.directory}.'
            f" Make it first: .venv/bin/python -m data.prepare {config_path}{why_not(config)}"
        )
    folder, manifest = found.folder, found.manifest
    total = sum(file["bytes"] for file in manifest["files"].values())
    token_store.verify(folder, manifest, max_hashed_bytes=None if total <= _MAX_HASHED_BYTES else _SMALL_BYTES, share=share)
    if "pair" in manifest:
        ids = Path(f"{manifest['pair']['prefix']}.bin")
        if not ids.is_file() or ids.stat().st_size != manifest["pair"]["bytes"]:
            raise DataError(f"{ids} is not the file that was prepared: it is missing or has another size. Prepare the data again.")
    if tokenizer_folder.fingerprint(folder / "tokenizer") != manifest["tokenizer"]["sha256"]:
        raise DataError(f"{folder}: its tokenizer is not the one its tokens were made with. Delete the folder and prepare the data again.")
    check_store(folder, manifest, config)
    return Datasets(folder, manifest, config, seed)
