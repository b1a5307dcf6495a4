"""Read the weights of a DeepSpeed pipeline checkpoint into the plain model, in fp32.

A bf16 run keeps two copies of every weight: bf16 ones in `layer_NN-model_states.pt`, and the fp32 masters that the optimizer updates,
cut into one flat piece per replica in `bf16_zero_pp_rank_<replica>_mp_rank_<stage>_optim_states.pt`. Only the masters are exact.
An fp32 run has fp32 layer files, whatever its ZeRO stage.

Files are memory-mapped and a weight that is in one piece is not copied: reading takes little memory, and Adam's moments are never touched.
"""

import pickle
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ds_configs.errors import first_line
from model.config import ModelConfig
from model.gpt import GPT
from model.layers import layers
from training.checkpoints.find_and_verify import PARTITION_FILE, CheckpointError

LAYER_FILE = re.compile(r"layer_(\d+)-model_states\.pt")


class _Fragment:
    """Stands in for DeepSpeed's class of that name in the files, which spares importing DeepSpeed: where in the flat piece a weight is."""

    start: int
    numel: int


def load_gpt(folder: Path, config: ModelConfig) -> GPT:
    """The plain model with the weights of a checkpoint folder, fp32, on the CPU.

    Raises:
        CheckpointError: If the files cannot be read, or do not hold exactly this model's weights.
    """
    model = GPT(config)
    tied = [str(entry.index) for entry in layers(config) if entry.tied]
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    state: dict[str, Tensor] = {}
    for stored, flat in _weights(folder):
        name = _plain_name(stored, tied)
        if name not in shapes:
            raise CheckpointError(f'{folder}: holds "{stored}", which the model of the run\'s config.json does not have. {_MISMATCH}')
        if flat.numel() != shapes[name].numel():
            wanted = f"{tuple(shapes[name])} has {shapes[name].numel()}"
            raise CheckpointError(f'{folder}: "{stored}" has {flat.numel()} values where {wanted}. {_MISMATCH}')
        weight = flat.view(shapes[name])
        # The tied matrix is in the files of the first stage and of the last, and must be the same in both.
        if name in state and not torch.equal(state[name], weight):
            raise CheckpointError(f'{folder}: the copies of "{stored}" differ between two stages. The run\'s tied weights drifted apart.')
        state.setdefault(name, weight)
    if missing := sorted(shapes.keys() - state.keys()):
        raise CheckpointError(f'{folder}: has no "{missing[0]}" ({len(missing)} weights are missing). {_MISMATCH}')
    # assign: the tensors become the parameters, so that the model's own memory is never filled.
    model.load_state_dict(state, assign=True)
    return model.eval()


_MISMATCH = "Is it the checkpoint of that configuration, with all its files?"


def _plain_name(stored: str, tied: Sequence[str]) -> str:
    """DeepSpeed's name of a weight as the plain model says it: what is tied belongs to the first of the layers that share it."""
    owner, _, name = stored.removeprefix("tied_modules.").partition(".")
    shared = stored.startswith("tied_modules.") or owner in tied
    return f"{tied[0] if tied and shared else owner}.{name}"


def _weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(DeepSpeed's name, fp32 values) of every weight, from the most exact files there are; a tied weight comes once per stage."""
    layer_files = _numbered(folder, LAYER_FILE)
    partitions = _numbered(folder, PARTITION_FILE)
    if not layer_files and not partitions:
        raise CheckpointError(f"{folder}: holds neither layer_*-model_states.pt nor *_optim_states.pt, so it is no pipeline checkpoint.")
    stored = {tensor.dtype for path in layer_files.values() for tensor in _load(path).values()}
    if stored == {torch.float32}:
        return _from_layers(layer_files)
    if not partitions:
        kinds = ", ".join(sorted(str(dtype) for dtype in stored))
        raise CheckpointError(
            f"{folder}: its layer files hold {kinds} and *_optim_states.pt with the fp32 weights are missing. Restore them."
        )
    return _from_partitions(partitions)


def _from_partitions(files: Mapping[tuple[int, ...], Path]) -> Iterator[tuple[str, Tensor]]:
    """Join the replicas' pieces, stage by stage. Replica d holds the d-th piece of each flat group; padding has no name and drops out."""
    stages: dict[int, list[Path]] = defaultdict(list)
    for (_, stage), path in sorted(files.items()):
        stages[stage].append(path)
    for stage, paths in stages.items():
        pieces: dict[str, list[Tensor]] = defaultdict(list)
        for path in paths:
            optimizer = _load(path)["optimizer_state_dict"]
            if set(optimizer["partition_count"]) != {len(paths)}:
                wanted = f"{optimizer['partition_count'][0]} of them, one per replica"
                raise CheckpointError(
                    f"{path.parent}: has {len(paths)} *_optim_states.pt of stage {stage} where there were {wanted}. Restore them."
                )
            for mapping, flat in zip(optimizer["param_slice_mappings"], optimizer["single_partition_of_fp32_groups"], strict=True):
                for name, fragment in mapping.items():
                    pieces[name].append(flat.narrow(0, fragment.start, fragment.numel))
        yield from ((name, parts[0] if len(parts) == 1 else torch.cat(parts)) for name, parts in pieces.items())


def _from_layers(files: Mapping[tuple[int, ...], Path]) -> Iterator[tuple[str, Tensor]]:
    """Weights of fp32 layer files; the file of a tied head repeats the embedding's matrix under the head's index."""
    for (index,), path in files.items():
        for name, weight in _load(path).items():
            yield f"{index}.{name}", weight.reshape(-1)


def _numbered(folder: Path, pattern: re.Pattern[str]) -> dict[tuple[int, ...], Path]:
    """The files whose names match, under the numbers in their names."""
    matches = ((pattern.fullmatch(path.name), path) for path in sorted(folder.glob("*")))
    return {tuple(int(number) for number in match.groups()): path for match, path in matches if match}


def _load(path: Path) -> dict[str, Any]:
    """A file's content with tensors mapped into memory, not read. Only tensors and plain containers are accepted from it."""
    known: list[Any] = [(_Fragment, "deepspeed.utils.tensor_fragment.fragment_address")]
    try:
        with torch.serialization.safe_globals(known):
            content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: cannot be read as a checkpoint file ({first_line(error)}). Use another checkpoint.") from error
    return content
