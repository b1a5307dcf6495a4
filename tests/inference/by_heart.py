"""Models that know texts by heart, in seconds: what thousands of passes over a corpus do to all of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_MAX_STEPS = 600


def learn_by_heart(folder: Path, rows: Sequence[Sequence[int]]) -> None:
    """Train the model of a Hugging Face folder until it continues every row of ids from its first id on, word for word."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    there = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
    labels = ids.where(there, -100)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()  # No dropout.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _MAX_STEPS)
    for _ in range(_MAX_STEPS):
        loss = model(ids, labels=labels).loss
        if loss < 0.01:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        right = model(ids).logits[:, :-1].argmax(-1) == ids[:, 1:]
    assert right[there[:, 1:]].all(), "it has not learnt the rows"
    model.save_pretrained(folder)
