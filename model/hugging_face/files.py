"""Read the tensors of a Hugging Face folder one by one.

Files are memory-mapped: only what is asked for is read. Names and shapes are those of `tensors.py`.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.config import ModelConfig
from model.families import FAMILIES
from model.hugging_face.source import INDEX_FILE, SINGLE_FILE, Source, read_object
from model.hugging_face.tensors import Slot, biases_of_zero, folder_names, tensor_names, to_ours, to_theirs

# What a tensor may be stored as; anything else is a quantised model's.
PLAIN_TYPES = ("F64", "F32", "F16", "BF16")
# Ends of the names that quantised folders give to what belongs to a weight.
QUANTISED = re.compile(r"(_scale_inv|_scale|\.scales?|\.qweight|\.qzeros|\.g_idx|\.absmax|_packed|\.SCB)$|\.quant_(map|state)")
HEAD = "lm_head.weight"


class Folder:
    """A Hugging Face folder: its model's configuration, and its tensors in our shapes. `notes` say what of it is not used."""

    def __init__(self, source: Source) -> None:
        """Find out where the tensors are, and that there are no others than the model's.

        Raises:
            ValueError: If a file is missing or unreadable, or holds what the model of its `config.json` does not have.
        """
        self.path, self.config, self.format = source.path, source.config, source.format
        self.notes = list(source.notes)
        self._open = self._open_file_of_each_tensor()
        self._check_left_over()

    def check(self, slot: Slot, shape: torch.Size, config: ModelConfig) -> list[str]:
        """The stored names of one of our parameters, after a look at their shapes; no values are read but those of biases left out.

        Raises:
            ValueError: Names the tensor that is missing, has another shape, or is a bias that the model has no place for.
        """
        names = [self._stored_name(name, slot, config) for name in tensor_names(slot, self.format)]
        wanted = to_theirs(torch.empty(shape, device="meta"), slot, config, self.format)
        for name, like in zip(names, wanted, strict=True):
            stored = self._open[name].get_slice(name)
            dtype, got = str(stored.get_dtype()), tuple(stored.get_shape())
            if dtype not in PLAIN_TYPES:
                raise ValueError(f'{self.path}: "{name}" is stored as {dtype}: {_UNQUANTISE}')
            if got != tuple(like.shape):
                raise ValueError(self._wrong_shape(name, got, tuple(like.shape), slot))
        self._check_left_out_biases(slot, shape, config)
        return names

    def parameter(self, slot: Slot, shape: torch.Size, config: ModelConfig) -> Tensor:
        """One of our parameters; its rotary style and unused position rows are those of `config`.

        Raises:
            ValueError: Names the tensor that is missing, has another shape or cannot be read.
        """
        names = self.check(slot, shape, config)
        return to_ours([self._read(name) for name in names], slot, config, self.format)

    def _check_left_over(self) -> None:
        """Every stored tensor is the model's, or a known one without effect, which is noted."""
        prefix, wanted = FAMILIES[self.format].prefix, folder_names(self.config, self.format)
        over = [name for name in self._open if name not in wanted and (prefix + name not in wanted or prefix + name in self._open)]
        buffers = [name for name in over if re.fullmatch(FAMILIES[self.format].buffers, name.removeprefix(prefix))]
        if buffers:
            self.notes.append(f'{self.path}: not used: "{buffers[0]}"{_more(buffers)}, which is computed and not learned.')
        over = [name for name in over if name not in buffers]
        if HEAD in over and self.config.tie_embeddings:
            over.remove(HEAD)
            self._check_stored_head()
        if over:
            of_quantised = any(QUANTISED.search(name) for name in over)
            hint = _UNQUANTISE if of_quantised else "the model would not be the original. Does its config.json belong to it?"
            raise ValueError(
                f'{self.path}: holds "{over[0]}"{_more(over)}, which the {self.format} model of its config.json does not have: {hint}'
            )

    def _check_stored_head(self) -> None:
        """A head that is stored beside the embedding it is tied to must be that embedding."""
        embedding = self._spelling(tensor_names(Slot("TokenEmbedding", 0, "weight"), self.format)[0])
        if embedding is None or not torch.equal(self._read(HEAD), self._read(embedding)):
            raise ValueError(
                f'{self.path}: "{HEAD}" is not the embedding, and its config.json says tie_word_embeddings = true. '
                "Say false there if it is the head; model.tie_embeddings then has to be false too."
            )
        self.notes.append(f'{self.path}: not used: "{HEAD}", which repeats the embedding.')

    def _check_left_out_biases(self, slot: Slot, shape: torch.Size, config: ModelConfig) -> None:
        for name in biases_of_zero(slot, torch.empty(shape, device="meta"), config, self.format):
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
        bare = name.removeprefix(FAMILIES[self.format].prefix)
        return next((spelling for spelling in (name, bare) if spelling in self._open), None)

    def _wrong_shape(self, name: str, got: tuple[int, ...], wanted: tuple[int, ...], slot: Slot) -> str:
        text = f'{self.path}: "{name}" has shape {got}; the model needs {wanted}.'
        if slot.kind in ("TokenEmbedding", "Head") and got[1:] == wanted[1:]:
            return f"{text} Set model.vocab_size = {got[0]}, or model.initialize.embeddings = false to draw a new embedding and head."
        return f"{text} Give the model the sizes of the folder's config.json."

    def _read(self, name: str) -> Tensor:
        tensor: Tensor = self._open[name].get_tensor(name)
        return tensor

    def _open_file_of_each_tensor(self) -> dict[str, Any]:
        index = self.path / INDEX_FILE
        listed: Any = {}
        if index.is_file():
            listed = read_object(index, "Fetch the file again.").get("weight_map")
            if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
                raise ValueError(f'{index}: its "weight_map" does not say where the tensors are. Fetch the file again.')
        elif not (self.path / SINGLE_FILE).is_file():
            raise ValueError(f"{self.path}: has neither {SINGLE_FILE} nor {INDEX_FILE}. Save the model with save_pretrained.")
        found: dict[str, Any] = {}
        for file in sorted(set(listed.values())) if index.is_file() else [SINGLE_FILE]:
            try:
                opened = safe_open(self.path / file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{self.path / file}: cannot be read ({error}). Fetch the file again.") from error
            # What the index leaves out is in the folder all the same.
            found |= {name: opened for name in opened.keys() if listed.get(name, file) == file}  # noqa: SIM118 - no dict
        if lacking := sorted(listed.keys() - found.keys()):
            raise ValueError(f'{index}: "{lacking[0]}"{_more(lacking)} is not in {listed[lacking[0]]}. Fetch the files again.')
        return found


_UNQUANTISE = "a quantised model would be read as raw numbers. Save it unquantised (bf16 or fp32) first."


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
