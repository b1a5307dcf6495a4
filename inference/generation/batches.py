"""Prompts of a command cut into batches that fit the model. Torch is not needed here."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inference.exporting.source import max_positions
from inference.generation.prompts import PromptError
from inference.generation.settings import Sampling
from inference.generation.text import FolderTokenizer


@dataclass(frozen=True)
class Batch:
    """Prompts that are continued together, and how: number i, from 0, with the seed `sampling.seed` + i."""

    prompts: list[str]
    tokens: list[list[int]]
    sampling: Sampling


def plan(prompts: Sequence[str], folder: Path, sampling: Sampling, batch_size: int, *, begin_documents: bool = False) -> list[Batch]:
    """Cut prompts into batches, with no more new tokens than the model has positions for; what is cut is said.

    Raises:
        PromptError: If a prompt alone fills the positions, or has no tokens.
    """
    tokenizer, positions = FolderTokenizer(folder), max_positions(folder)
    tokens = [tokenizer.encode(prompt, begins_document=begin_documents) for prompt in prompts]
    for number, ids in enumerate(tokens, start=1):
        if not ids and begin_documents:
            raise PromptError(f"{folder}: its model has no end-of-text token, so a document cannot begin with nothing. Give a prompt.")
        if not ids:
            raise PromptError(f"prompt {number} is nothing to the tokenizer of {folder}. Use characters that it was trained on.")
        if len(ids) >= positions:
            raise PromptError(
                f"prompt {number} has {len(ids)} tokens and the model {positions} positions, so nothing can follow. Shorten the prompt."
            )
    batches = []
    for start in range(0, len(prompts), batch_size):
        stop = min(start + batch_size, len(prompts))
        room = positions - max(len(ids) for ids in tokens[start:stop])
        if room < sampling.new_tokens:
            several = f"the longest of prompts {start + 1} to {stop}" if stop - start > 1 else f"prompt {start + 1}"
            which = "the prompt" if len(set(prompts)) == 1 else several
            print(
                f"Adding {room} tokens instead of {sampling.new_tokens}: {which} leaves no more of {positions} positions.", file=sys.stderr
            )
        fitting = dataclasses.replace(sampling, new_tokens=min(room, sampling.new_tokens), seed=sampling.seed + start)
        batches.append(Batch(list(prompts[start:stop]), tokens[start:stop], fitting))
    return batches
