"""A Hugging Face folder in DeepSpeed's inference engine, in the precision that was asked for. Text out of it is `writing.py`."""

import contextlib
import io
import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ds_configs.atomic_files import object_or_nothing
from inference.exporting.model_path import loading, max_positions
from inference.generation.settings import DTYPES
from inference.generation.text import FolderTokenizer
from training.checkpoints.find_and_verify import CheckpointError

_TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.float32}


@dataclass(frozen=True)
class Engine:
    """A loaded model with its tokenizer."""

    core: Any
    tokenizer: FolderTokenizer
    vocab_size: int
    unusable: Tensor
    """Ids, on the CPU, that stand for nothing and are never written: a vocabulary is often padded beyond its tokenizer's."""
    max_positions: int
    """Tokens the model can hold, the prompt's included."""
    dtype: str
    """As it was asked for."""


def load_engine(folder: Path, *, dtype: str = "fp32", tp_size: int = 1) -> Engine:
    """Load a folder into an inference engine.

    Args:
        folder: A Hugging Face folder of a causal language model with a `tokenizer.json`.
        dtype: Of DTYPES; DeepSpeed's own default, fp16, does not run on a CPU. "int8" holds the weights of linear layers in 8 bits, one
            scale for each output, and rounds what is multiplied by them to 8 bits, one scale for the whole batch (CPU only).
        tp_size: Processes that share the model's matrices; all of them call this.

    Raises:
        CheckpointError: If the folder does not load, or its model cannot be shared by several processes.
    """
    assert dtype in DTYPES, dtype
    config = object_or_nothing(folder / "config.json")
    if tp_size > 1 and config.get("model_type") == "gpt2":
        raise CheckpointError(
            f"{folder}: DeepSpeed does not split a GPT-2 over {tp_size} processes, but it does split the same weights as OPT. "
            "Export the run again with --format opt, and name that folder."
        )
    tokenizer = FolderTokenizer(folder)
    deepspeed = _import_deepspeed()
    _check_device(deepspeed.accelerator.get_accelerator(), dtype, tp_size)
    model = _from_pretrained(folder, _TORCH[dtype])
    # The library leaves out a mask that masks nothing, and then warns of every end of a text that it might be padding.
    model.config.pad_token_id = None
    _take_torchs_layers(model, linearize=dtype in ("bf16", "int8"))
    # DeepSpeed prints to standard output, which is for generated text alone.
    with contextlib.redirect_stdout(io.StringIO()):
        core = deepspeed.init_inference(
            model,
            dtype=_TORCH[dtype],
            replace_with_kernel_inject=False,
            tensor_parallel={"tp_size": tp_size},
            max_out_tokens=max_positions(folder),
        )
    if dtype == "int8":
        _quantize(core.module)
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    unusable = torch.tensor(sorted(set(range(vocab_size)) - tokenizer.usable_ids), dtype=torch.int64)
    return Engine(core, tokenizer, vocab_size, unusable, max_positions(folder), dtype)


def _check_device(accelerator: Any, dtype: str, tp_size: int) -> None:
    device = accelerator.device_name()
    if dtype == "int8" and tp_size > 1:
        raise CheckpointError(f"dtype = int8; one process has it, {tp_size} have not. Use fp32 or bf16.")
    if _TORCH[dtype] not in accelerator.supported_dtypes() or (dtype == "int8" and device != "cpu"):
        raise CheckpointError(f"dtype = {dtype}; it is not to be had on {device}. Use fp32 or bf16.")


def _take_torchs_layers(model: nn.Module, *, linearize: bool) -> None:
    """Give GPT-2 torch's own layers instead of transformers', which compute the same.

    transformers spells GELU by tanh out in eight operations, and its Conv1D holds the transposed matrix of a linear layer. In fp32 a
    Conv1D is the faster of the two for one token, in bf16 the linear layer is (0.85 and 1.1 times as fast on an EPYC 9004), and only
    linear layers are quantised.
    """
    from transformers.activations import NewGELUActivation
    from transformers.pytorch_utils import Conv1D

    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, NewGELUActivation):
                setattr(parent, name, nn.GELU(approximate="tanh"))
            elif linearize and isinstance(layer, Conv1D):
                linear = nn.utils.skip_init(nn.Linear, *layer.weight.shape, dtype=layer.weight.dtype)
                linear.weight, linear.bias = nn.Parameter(layer.weight.detach().t().contiguous()), layer.bias
                setattr(parent, name, linear)


def _quantize(model: nn.Module) -> None:
    with warnings.catch_warnings():
        # It is to move to torchao, whose int8 layers need a compiler on a CPU; torch is pinned, and an upgrade shows in the tests.
        warnings.simplefilter("ignore")
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

        quantize_dynamic(model, {nn.Linear: per_channel_dynamic_qconfig}, inplace=True)


def leave() -> None:
    """Part from the other processes, if there are any; one that just exits aborts the others."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _from_pretrained(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    options = {"local_files_only": True, "trust_remote_code": False, "output_loading_info": True}
    with loading(folder):
        model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    if missing := sorted(found["missing_keys"]):
        raise CheckpointError(
            f'{folder}: has no "{missing[0]}" ({len(missing)} weights are missing); they would be random. Export it again.'
        )
    return model.eval()


def _import_deepspeed() -> Any:
    """DeepSpeed, told to log to standard error, and without the operation that it would compile when processes join."""
    with contextlib.redirect_stdout(sys.stderr):
        # It warns on import that it found no accelerator, which on a CPU is no news.
        logging.disable(logging.WARNING)
        import deepspeed
        import deepspeed.accelerator
        import deepspeed.ops

        deepspeed.accelerator.get_accelerator()
        logging.disable(logging.NOTSET)
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}  # As `training/launch/process_group.py` does.
    return deepspeed
