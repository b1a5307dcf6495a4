"""Write a little text with the pipeline as it stands, for the eye.

Every token is one forward pass through all stages, without a key-value cache: right for a few dozen tokens during training, wrong
for anything longer (`python -m inference.generate`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from deepspeed import comm as dist
from deepspeed.accelerator import get_accelerator


def sample_text(engine: Any, prompt: Sequence[int], *, tokens: int, temperature: float, seed: int, vocab_size: int) -> list[int]:
    """Continue `prompt` by `tokens` token ids. Collective: all ranks of all replicas call it, all get the same answer.

    Args:
        engine: The pipeline engine; its data iterator, batch shapes and random state are as before afterwards.
        prompt: At least one token id; prompt and new tokens must fit the model's positions.
        tokens: How many to add.
        temperature: 0 takes the likeliest.
        seed: Of the draw; the global random state is left alone, or a run that samples would not resume exactly.
        vocab_size: The tokenizer's: ids of a padded vocabulary beyond it are never drawn.
    """
    device = get_accelerator().current_device_name()
    generator = torch.Generator().manual_seed(seed)
    # Attention is causal, so the padding to the right of the last token cannot reach it.
    row = torch.zeros(1, len(prompt) + tokens, dtype=torch.int64, device=device)
    row[0, : len(prompt)] = torch.tensor(prompt)
    # One row instead of a training batch: the pipeline's buffers are re-made for this shape and for the old one again.
    engine.reset_activation_shape()
    for position in range(len(prompt), len(prompt) + tokens):
        engine.total_loss = None  # The engine adds up whatever the last stage returns, and logits of a sample fit no loss.
        _, logits = engine.eval_batch(
            iter([(row, row)]), return_logits=True, compute_loss=False, reduce_output=None, bcast_loss=False, num_micro_batches=1
        )
        if engine.is_last_stage():
            row[0, position] = _draw(logits[0, position - 1, :vocab_size], temperature, generator)
        if engine.is_pipe_parallel:
            dist.broadcast(row, src=engine.grid.stage_to_global(engine.num_stages - 1), group=engine.mpu.get_pipe_parallel_group())
    engine.reset_activation_shape()
    return [int(token) for token in row[0].tolist()]


def _draw(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    logits = logits.float().cpu()
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1, generator=generator))
