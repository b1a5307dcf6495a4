"""Read the tensors of a Hugging Face folder one by one.

Files are memory-mapped: only what is asked for is read. Names and shapes are those of `tensors.py`.
"""

import re
from dataclasses import replace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ds_configs.atomic_files import read_object
from model.config import InitializeConfig, ModelConfig
from model.families import FAMILIES
from model.hugging_face.pretrained import INDEX_FILE, SINGLE_FILE, PretrainedModel
from model.hugging_face.tensors import VOCABULARY, Slot, stored_tensors, tensor_names, to_ours
from model.layers import layers

# What a tensor may be stored as; anything else is a quantised model's.
PLAIN_TYPES = ("F64", "F32", "F16", "BF16")
# Ends of the names that quantised folders give to what belongs to a weight.
QUANTISED = re.compile(r"(_scale_inv|_scale|\.scales?|\.qweight|\.qzeros|\.g_idx|\.absmax|_packed|\.SCB)$|\.quant_(map|state)")
HEAD = "lm_head.weight"


class FolderWeights:
    """A Hugging Face folder that a model starts from: its tensors in the model's shapes. `notes` say what of it is not used."""

    def __init__(self, pretrained: PretrainedModel, config: ModelConfig) -> None:
        """Find out where the tensors are, and that they are the model's. Of values only those of biases that the model lacks are read.

        Raises:
            ValueError: Names the file or tensor that is missing or unreadable, has another shape, or that the model has no place for.
        """
        self.path, self.notes = pretrained.path, list(pretrained.notes)
        self._format, self._config = pretrained.format, config
        tied = pretrained.config.tie_embeddings
        # What the folder should hold: the model in the depth of the folder, with a head of its own where either of them has one.
        whole = replace(
            config, num_layers=pretrained.config.num_layers, tie_embeddings=config.tie_embeddings and tied, initialize=InitializeConfig()
        )
        modules = ((entry, entry.on_meta(whole)) for entry in layers(whole))
        expected = {name: (slot, like) for slot, name, like in stored_tensors(modules, whole, pretrained.format)}
        wanted = expected.keys() - ({HEAD} if tied else set())
        prefix = FAMILIES[pretrained.format].prefix
        stored = self._stored_tensors()
        absent = wanted - stored.keys()
        # Folders of a bare model lack the prefix.
        self._tensors = {prefix + name if prefix + name in absent else name: tensor for name, tensor in stored.items()}
        self._check_left_over([name for name in self._tensors if name not in wanted])
        for name, (slot, like) in expected.items():
            if config.initialize.embeddings or slot.kind not in VOCABULARY:
                self._check(name, slot, tuple(like.shape))

    def parameter(self, slot: Slot) -> Tensor:
        """One of our parameters; its rotary style and unused position rows are the model's."""
        theirs = [self._tensors[name][...] for name in tensor_names(slot, self._format)]
        return to_ours(theirs, slot, self._config, self._format)

    def _check(self, name: str, slot: Slot, wanted: tuple[int, ...]) -> None:
        """Look at a tensor of one of our parameters, or at the bias beside it that the model leaves out."""
        if slot.attribute == "weight" and name.endswith(".bias"):
            if name in self._tensors and self._tensors[name][...].any():
                field = "norm_bias" if slot.parameter == "norm.weight" else "use_bias"
                raise ValueError(f'{self.path}: "{name}" is not zero, and model.{field} is false. Set it to true.')
            return
        if name not in self._tensors:
            raise ValueError(f'{self.path}: has no "{name}". {self._why_missing(slot)}')
        dtype, got = self._tensors[name].get_dtype(), tuple(self._tensors[name].get_shape())
        if dtype not in PLAIN_TYPES:
            raise ValueError(f'{self.path}: "{name}" is stored as {dtype}: {_UNQUANTISE}')
        if got != wanted:
            raise ValueError(f'{self.path}: "{name}" has shape {got}; the model needs {wanted}. Does its config.json belong to it?')

    def _check_left_over(self, over: list[str]) -> None:
        """What is no tensor of the model may be a known one without effect, which is noted."""
        family = FAMILIES[self._format]
        if buffers := [name for name in over if re.fullmatch(family.buffers, name.removeprefix(family.prefix))]:
            self.notes.append(f'{self.path}: not used: "{buffers[0]}"{_more(buffers)}, which is computed and not learned.')
        over = [name for name in over if name not in buffers]
        if HEAD in over:
            over.remove(HEAD)
            (embedding,) = tensor_names(Slot("TokenEmbedding", 0, "weight"), self._format)
            if embedding not in self._tensors or not torch.equal(self._tensors[HEAD][...], self._tensors[embedding][...]):
                raise ValueError(
                    f'{self.path}: "{HEAD}" is not the embedding, and its config.json says tie_word_embeddings = true. '
                    "Say false there if it is the head; model.tie_embeddings then has to be false too."
                )
            if self._config.tie_embeddings:
                self.notes.append(f'{self.path}: not used: "{HEAD}", which repeats the embedding.')
        if over:
            of_quantised = any(QUANTISED.search(name) for name in over)
            hint = _UNQUANTISE if of_quantised else "the model would not be the original. Does its config.json belong to it?"
            raise ValueError(
                f'{self.path}: holds "{over[0]}"{_more(over)}, which the {self._format} model of its config.json does not have: {hint}'
            )

    def _why_missing(self, slot: Slot) -> str:
        if slot.kind == "Head":
            return f"model.tie_embeddings is {str(self._config.tie_embeddings).lower()}. Was it trained with tied embeddings?"
        if slot.attribute == "bias":
            return "model.use_bias or model.norm_bias is true. Was it trained without biases?"
        return "Is the folder complete, and does its config.json belong to it?"

    def _stored_tensors(self) -> dict[str, Any]:
        """What the files hold, by the names there; values are read when they are indexed."""
        index, single = self.path / INDEX_FILE, self.path / SINGLE_FILE
        listed: Any = {}
        if single.is_file():
            if index.is_file():  # Either may be left over from an earlier save.
                self.notes.append(f"{index}: not used: {SINGLE_FILE} is there too, and transformers reads that one. Remove the wrong one.")
        elif not index.is_file():
            raise ValueError(f"{self.path}: has neither {SINGLE_FILE} nor {INDEX_FILE}. Save the model with save_pretrained.")
        else:
            listed = read_object(index, ". Fetch the file again.").get("weight_map")
            if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
                raise ValueError(f'{index}: its "weight_map" does not say where the tensors are. Fetch the file again.')
        found: dict[str, Any] = {}
        for file in sorted(set(listed.values())) or [SINGLE_FILE]:
            try:
                opened = safe_open(self.path / file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{self.path / file}: cannot be read ({error}). Fetch the file again.") from error
            # What the index leaves out is in the folder all the same.
            found |= {name: opened.get_slice(name) for name in opened.keys() if listed.get(name, file) == file}  # noqa: SIM118 - no dict
        if lacking := sorted(listed.keys() - found.keys()):
            raise ValueError(f'{index}: "{lacking[0]}"{_more(lacking)} is not in {listed[lacking[0]]}. Fetch the files again.')
        return found


_UNQUANTISE = "a quantised model would be read as raw numbers. Save it unquantised (bf16 or fp32) first."


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
