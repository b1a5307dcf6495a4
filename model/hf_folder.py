"""Read the tensors of a Hugging Face folder one by one, and write such folders.

Files are memory-mapped: only what is asked for is read. Names and shapes are those of `hf_tensors.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .config import ModelConfig
from .hf_config import from_hf
from .hf_tensors import FORMATS, Slot, biases_of_zero, tensor_names, to_ours, to_theirs

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


class Folder:
    """A Hugging Face folder: its model's configuration, and its tensors in our shapes."""

    def __init__(self, path: str | Path) -> None:
        """Read `config.json` and where the tensors are.

        Raises:
            ValueError: If a file is missing or unreadable, or the model is none of ours.
        """
        self.path = Path(path)
        values = _read_json(self.path / "config.json", "Name a Hugging Face folder.")
        self.config = from_hf(values, str(self.path / "config.json"))
        self.format = str(values["model_type"])
        self._handles: dict[str, Any] = {}
        self._files = self._file_of_each_tensor()

    def check(self, slot: Slot, shape: torch.Size, config: ModelConfig) -> list[str]:
        """The stored names of one of our parameters, after a look at their shapes; no values are read.

        Raises:
            ValueError: Names the tensor that is missing or has another shape.
        """
        names = [self._stored_name(name, slot, config) for name in tensor_names(slot, self.format)]
        wanted = to_theirs(torch.empty(shape, device="meta"), slot, config, self.format)
        for name, like in zip(names, wanted, strict=True):
            got = tuple(self._open(name).get_slice(name).get_shape())
            if got != tuple(like.shape):
                raise ValueError(self._wrong_shape(name, got, tuple(like.shape), slot))
        return names

    def parameter(self, slot: Slot, shape: torch.Size, config: ModelConfig) -> Tensor:
        """One of our parameters; its rotary style and unused position rows are those of `config`.

        Raises:
            ValueError: Names the tensor that is missing, has another shape or cannot be read.
        """
        names = self.check(slot, shape, config)
        weight = to_ours([self._read(name) for name in names], slot, config, self.format)
        self._check_left_out_biases(slot, weight, config)
        return weight

    def _check_left_out_biases(self, slot: Slot, weight: Tensor, config: ModelConfig) -> None:
        for name in biases_of_zero(slot, weight, config, self.format):
            stored = self._spelling(name)
            if stored is not None and self._read(stored).any():
                field = "norm_bias" if slot.parameter == "norm.weight" else "use_bias"
                raise ValueError(f'{self.path}: "{stored}" is not zero, and model.{field} is false. Set it to true.')

    def _stored_name(self, name: str, slot: Slot, config: ModelConfig) -> str:
        stored = self._spelling(name)
        if stored is not None:
            return stored
        hint = "Is the folder complete, and does its config.json belong to it?"
        if slot.kind == "Head":
            hint = f"model.tie_embeddings is {str(config.tie_embeddings).lower()}. Was it trained with tied embeddings?"
        elif slot.attribute == "bias":
            hint = "model.use_bias or model.norm_bias is true. Was it trained without biases?"
        raise ValueError(f'{self.path}: has no "{name}". {hint}')

    def _spelling(self, name: str) -> str | None:
        """The name under which the folder has a tensor: folders of a bare model lack the prefix."""
        bare = name.removeprefix(FORMATS[self.format].prefix)
        return next((spelling for spelling in (name, bare) if spelling in self._files), None)

    def _wrong_shape(self, name: str, got: tuple[int, ...], wanted: tuple[int, ...], slot: Slot) -> str:
        text = f'{self.path}: "{name}" has shape {got}; the model needs {wanted}.'
        if slot.kind in ("TokenEmbedding", "Head") and got[1:] == wanted[1:]:
            return f"{text} Set model.vocab_size = {got[0]}, or model.initialize.embeddings = false to draw a new embedding and head."
        return f"{text} Give the model the sizes of the folder's config.json."

    def _read(self, name: str) -> Tensor:
        try:
            return self._open(name).get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f'{self.path / self._files[name]}: "{name}" cannot be read ({error}). Fetch the file again.') from error

    def _open(self, name: str) -> Any:
        return self._handle(self._files[name])

    def _handle(self, file: str) -> Any:
        if file not in self._handles:
            try:
                self._handles[file] = safe_open(self.path / file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{self.path / file}: cannot be read ({error}). Fetch the file again.") from error
        return self._handles[file]

    def _file_of_each_tensor(self) -> dict[str, str]:
        if (self.path / INDEX_FILE).is_file():
            found: dict[str, str] = _read_json(self.path / INDEX_FILE, "Fetch the file again.")["weight_map"]
            return found
        if not (self.path / SINGLE_FILE).is_file():
            raise ValueError(f"{self.path}: has neither {SINGLE_FILE} nor {INDEX_FILE}. Save the model with save_pretrained.")
        return dict.fromkeys(self._handle(SINGLE_FILE).keys(), SINGLE_FILE)


def write_tensors(out: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> None:
    """Write named tensors as one safetensors file, or as several with an index when they are more than `shard_bytes`.

    Only one file's tensors are held at a time.
    """
    files: dict[str, list[str]] = {}
    total = 0
    for number, shard in enumerate(_shards(tensors, shard_bytes), start=1):
        file = f"shard-{number}"
        save_file({name: tensor.contiguous() for name, tensor in shard.items()}, out / file, metadata={"format": "pt"})
        files[file] = list(shard)
        total += sum(tensor.nbytes for tensor in shard.values())
    if len(files) == 1:
        (out / "shard-1").replace(out / SINGLE_FILE)
        return
    weight_map: dict[str, str] = {}
    for number, (file, names) in enumerate(files.items(), start=1):
        final = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        (out / file).replace(out / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _read_json(path: Path, hint: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}). {hint}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: is no JSON object. {hint}")
    return values
