"""A Hugging Face folder in DeepSpeed's inference engine, and text out of it.

Which folder, which prompts and where the text goes is `generate.py`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ds_configs.files import object_or_nothing
from inference.exporting.checkpoint import CheckpointError
from inference.exporting.source import max_positions
from inference.generation.settings import Sampling
from inference.generation.text import FolderTokenizer, TextStream

OnText = Callable[[int, str, bool], None]
"""Called with (index of the prompt, a piece of new text, whether it was the last)."""


@dataclass(frozen=True)
class Engine:
    """A loaded model with its tokenizer."""

    core: Any
    tokenizer: FolderTokenizer
    vocab_size: int
    max_positions: int
    """Tokens the model can hold, the prompt's included."""


@dataclass(frozen=True)
class Completion:
    """What came after one prompt. `finished` means that the model ended the text, not the limit."""

    text: str
    num_tokens: int
    finished: bool


def load_engine(folder: Path, *, dtype: str = "float32", tp_size: int = 1) -> Engine:
    """Load a folder into an inference engine.

    Args:
        folder: A Hugging Face folder of a causal language model with a `tokenizer.json`.
        dtype: "float32", "bfloat16" or "float16"; DeepSpeed's own default, float16, does not run on a CPU.
        tp_size: Processes that share the model's matrices; all of them call this.

    Raises:
        CheckpointError: If the folder does not load, or its model cannot be shared by several processes.
    """
    config = object_or_nothing(folder / "config.json")
    if tp_size > 1 and config.get("model_type") == "gpt2":
        raise CheckpointError(
            f"{folder}: DeepSpeed does not split a GPT-2 over {tp_size} processes, but it does split the same weights as OPT. "
            "Export the run again with --format opt, and name that folder."
        )
    tokenizer = FolderTokenizer(folder)
    deepspeed = _import_deepspeed()
    accelerator = deepspeed.accelerator.get_accelerator()
    if getattr(torch, dtype) not in accelerator.supported_dtypes():
        raise CheckpointError(f"dtype = {dtype}; DeepSpeed does not have it on {accelerator.device_name()}. Use float32 or bfloat16.")
    model = _from_pretrained(folder, getattr(torch, dtype))
    # DeepSpeed prints to standard output, which is for generated text alone.
    with contextlib.redirect_stdout(io.StringIO()):
        core = deepspeed.init_inference(
            model,
            dtype=getattr(torch, dtype),
            replace_with_kernel_inject=False,
            tensor_parallel={"tp_size": tp_size},
            max_out_tokens=max_positions(folder),
        )
    return Engine(core, tokenizer, model.config.vocab_size, max_positions(folder))


def generate(engine: Engine, prompts: Sequence[Sequence[int]], sampling: Sampling, on_text: OnText | None = None) -> list[Completion]:
    """Continue a batch of prompts; shorter ones are padded on the left, which changes nothing for them.

    Args:
        engine: From `load_engine`.
        prompts: Token ids, at least one each; the longest and the new tokens together fit into `max_positions`.
        sampling: How to draw. The same seed draws the same text for the same batch; the global random state is used.
        on_text: Told of new text as it comes.
    """
    longest = max(len(prompt) for prompt in prompts)
    assert longest + sampling.new_tokens <= engine.max_positions, f"{longest} + {sampling.new_tokens} tokens"
    pad = engine.tokenizer.eos_ids[0] if engine.tokenizer.eos_ids else 0
    device = engine.core.module.device
    tokens = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    collector = _Collector(engine.tokenizer, prompts, on_text)
    torch.manual_seed(sampling.seed)
    engine.core.generate(
        input_ids=tokens,
        attention_mask=mask,
        generation_config=_generation_config(engine, sampling, pad),
        logits_processor=[_Repetition(sampling.repetition_penalty, mask.bool()), _Usable(engine)],
        streamer=collector,
    )
    return collector.completions()


def leave() -> None:
    """Part from the other processes, if there are any; one that just exits aborts the others."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _generation_config(engine: Engine, sampling: Sampling, pad: int) -> Any:
    from transformers import GenerationConfig

    greedy = sampling.temperature == 0
    drawing = {} if greedy else {"temperature": float(sampling.temperature), "top_k": sampling.top_k, "top_p": sampling.top_p}
    # What the folder says about sampling is a default for others; here every setting is the caller's.
    engine.core.module.generation_config = GenerationConfig()
    return GenerationConfig(
        max_new_tokens=sampling.new_tokens,
        do_sample=not greedy,
        num_beams=1,  # DeepSpeed compares it, and the library's default is None
        eos_token_id=list(engine.tokenizer.eos_ids) or None,
        pad_token_id=pad,
        **drawing,
    )


class _Usable:
    """Rules out ids that stand for nothing: a vocabulary is often padded beyond its tokenizer's."""

    def __init__(self, engine: Engine) -> None:
        unusable = [index for index in range(engine.vocab_size) if index not in engine.tokenizer.usable_ids]
        self._unusable = torch.tensor(unusable, dtype=torch.int64, device=engine.core.module.device)

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        return scores.index_fill(1, self._unusable, -torch.inf)


class _Repetition:
    """Divides the positive and multiplies the negative scores of tokens that are there already (Keskar et al. 2019, CTRL).

    The library's own version counts the padding on the left as text, so that a prompt's neighbours in the batch would change its text.
    """

    def __init__(self, penalty: float, mask: Tensor) -> None:
        self._penalty, self._mask = penalty, mask

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        if self._penalty == 1:
            return scores
        new = torch.ones_like(tokens[:, self._mask.shape[1] :], dtype=torch.bool)
        rows, columns = torch.cat([self._mask, new], dim=1).nonzero(as_tuple=True)
        present = torch.zeros_like(scores, dtype=torch.bool)
        present[rows, tokens[rows, columns]] = True
        return torch.where(present, torch.where(scores < 0, scores * self._penalty, scores / self._penalty), scores)


class _Collector:
    """The streamer that `generate` calls: first with the prompts (B, T), then with one new token (B,) of every row at a time."""

    def __init__(self, tokenizer: FolderTokenizer, prompts: Sequence[Sequence[int]], on_text: OnText | None) -> None:
        self._eos_ids = tokenizer.eos_ids
        self._streams = [TextStream(tokenizer, prompt) for prompt in prompts]
        self._texts = [""] * len(prompts)
        self._counts = [0] * len(prompts)
        self._finished = [False] * len(prompts)
        self._on_text = on_text or (lambda row, piece, last: None)
        self._prompts_seen = False

    def put(self, tokens: Tensor) -> None:
        if not self._prompts_seen:
            self._prompts_seen = True
            return
        for row, token in enumerate(tokens.tolist()):
            if self._finished[row]:
                continue  # the row is over, and these are padding
            self._counts[row] += 1
            self._finished[row] = token in self._eos_ids
            self._tell(row, self._streams[row].close() if self._finished[row] else self._streams[row].push(token))

    def end(self) -> None:
        for row, finished in enumerate(self._finished):
            if not finished:
                self._tell(row, self._streams[row].close(), last=True)

    def _tell(self, row: int, piece: str, last: bool = False) -> None:
        self._texts[row] += piece
        self._on_text(row, piece, last or self._finished[row])

    def completions(self) -> list[Completion]:
        """All rows, when the end has come."""
        return [Completion(*facts) for facts in zip(self._texts, self._counts, self._finished, strict=True)]


def _from_pretrained(folder: Path, dtype: torch.dtype) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{folder}: does not load as a causal language model ({reason}). Export it again.") from error


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
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
