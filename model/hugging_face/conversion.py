"""A Hugging Face folder as the plain model, and back.

Configurations are translated in `config.py`, names and shapes in `tensors.py`; tensors are read in `folder_weights.py`.
Tokenizer files and token ids are the caller's affair.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ds_configs.atomic_files import write_json
from model.config import InitializeConfig, ModelConfig
from model.families import FAMILIES
from model.gpt import GPT
from model.hugging_face.config import to_hugging_face
from model.hugging_face.pretrained import INDEX_FILE, SINGLE_FILE, read_pretrained
from model.hugging_face.tensors import stored_tensors
from model.initialize import Weights
from model.layers import layers

log = logging.getLogger(__name__)

SHARD_BYTES = 4 * 2**30


def from_folder(folder: str | Path) -> tuple[ModelConfig, GPT]:
    """Read a folder of one of the families (safetensors) as fp32 weights on the CPU.

    Raises:
        ValueError: Names the file, field or tensor that is missing, has another shape, or is of a model this project does not know.
    """
    config = read_pretrained(folder).config
    weights = Weights(replace(config, initialize=InitializeConfig(method="folder", folder=str(folder))), seed=0)
    for note in weights.notes:
        log.warning("%s", note)
    model = GPT(config)
    for index, module in model.named_children():
        weights.fill(module, int(index))
    return config, model


def to_folder(model: GPT, config: ModelConfig, out: str | Path, format: str) -> None:
    """Write `config.json`, `generation_config.json` and the weights, in the model's precision, into a folder.

    `from_folder` gives back the same model bit for bit, but for OPT's two unused position rows in a format that has none.

    Args:
        model: The weights.
        config: Their configuration.
        out: The folder; made if missing, files of the same name are replaced.
        format: The family whose format it is. The GPT-2 family can also be written as opt.

    Raises:
        ValueError: If the format is unknown or cannot hold the model; names every field in the way.
    """
    if format not in FAMILIES:
        raise ValueError(f'format "{format}" is unknown. Use {", ".join(FAMILIES)}.')
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    # Without these the classes of transformers assume ids of their own vocabularies.
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    values = {**to_hugging_face(config, format), **ids, "dtype": dtype}
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    _write_tensors(folder, named_tensors(model, config, format))
    for name, content in (("config.json", values), ("generation_config.json", ids)):
        write_json(folder / name, content, indent=2)


def named_tensors(model: GPT, config: ModelConfig, format: str) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every tensor of the folder; a tied matrix comes once, as the embedding."""
    modules = zip(layers(config), model.children(), strict=False)  # A tied head is no child.
    return ((name, tensor) for _, name, tensor in stored_tensors(modules, config, format))


def _write_tensors(out: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write named tensors as one safetensors file, or as several with an index when they are more than SHARD_BYTES.

    Only one file's tensors are held at a time.
    """
    shards: list[list[str]] = []
    total = 0
    for shard in _shards(tensors):
        shards.append(list(shard))
        save_file({name: tensor.contiguous() for name, tensor in shard.items()}, out / f"shard-{len(shards)}", metadata={"format": "pt"})
        total += sum(tensor.nbytes for tensor in shard.values())
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (out / f"shard-{number}").replace(out / file)
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        write_json(out / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)


def _shards(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard
