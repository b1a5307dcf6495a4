"""Text out of an engine: prompts are continued together, and told as the text grows.

Which folder, which prompts and where the text goes is `generate.py`; how the next token is drawn is `sampling.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference.generation.engine import Engine
from inference.generation.sampling import SamplingLogitsProcessor
from inference.generation.settings import SamplingParams
from inference.generation.text import FinishReason, GrowingText
from training.checkpoints.find_and_verify import CheckpointError

OnText = Callable[[int, str, bool], None]
"""Called with (index of the prompt, a piece of new text, whether it was the last)."""

_PAD = 0  # It is masked, so any id serves that the model has; the end of text may be none of them.


@dataclass(frozen=True)
class Completion:
    """What came after one prompt, and why no more: the model ended the text, a stop was written, or the limit was reached."""

    text: str
    num_tokens: int
    finish_reason: FinishReason


def generate(engine: Engine, prompts: Sequence[Sequence[int]], sampling: SamplingParams, on_text: OnText | None = None) -> list[Completion]:
    """Continue a batch of prompts; shorter ones are padded on the left, which changes nothing for them.

    Args:
        engine: From `load_engine`.
        prompts: Token ids, at least one each; the longest and the new tokens together fit into `max_positions`.
        sampling: How to draw. Prompt number i, from 0, draws with the seed `sampling.seed` + i, whatever else is in the batch.
        on_text: Told of new text as it comes.

    Raises:
        CheckpointError: If a prompt has an id that the model does not know.
    """
    if (largest := max(map(max, prompts))) >= engine.vocab_size:
        raise CheckpointError(
            f"a prompt has token {largest}, and the model has {engine.vocab_size}. Its tokenizer.json is another model's."
        )
    longest = max(len(prompt) for prompt in prompts)
    assert longest + sampling.new_tokens <= engine.max_positions, f"{longest} + {sampling.new_tokens} tokens"
    device = engine.core.module.device
    ids = torch.tensor([[_PAD] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    rows = [GrowingText(engine.tokenizer, prompt, sampling.stops) for prompt in prompts]
    told = on_text or (lambda row, piece, last: None)

    def finished(tokens: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """The library's question after each token, with all of them (B, T): which rows (B,) are over."""
        for index, (row, token) in enumerate(zip(rows, tokens[:, -1].tolist(), strict=True)):
            if row.finish_reason is None:  # else the row is over, and this is padding
                told(index, row.push(token), row.finish_reason is not None)
        return torch.tensor([row.finish_reason is not None for row in rows], device=device)

    engine.core.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=_generation_config(engine, sampling.new_tokens),
        logits_processor=[SamplingLogitsProcessor(sampling, engine.unusable.to(device), mask.bool())],
        stopping_criteria=[finished],
    )
    for index, row in enumerate(rows):
        if row.finish_reason is None:
            told(index, row.close("length"), True)
    return [Completion(row.text, row.num_tokens, row.finish_reason or "length") for row in rows]


def _generation_config(engine: Engine, new_tokens: int) -> Any:
    from transformers import GenerationConfig

    # What the folder says about sampling is a default for others; here every setting is the caller's.
    engine.core.module.generation_config = GenerationConfig()
    return GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,  # `SamplingLogitsProcessor` has drawn
        num_beams=1,  # DeepSpeed compares it, and the library's default is None
        eos_token_id=list(engine.tokenizer.eos_ids) or None,
        pad_token_id=_PAD,
    )
