"""How much a request, and all of them together, may ask for. Torch is not needed here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Beyond these a request is refused with a line that names the limit."""

    context_length: int
    """Tokens of a prompt and its text together."""
    max_tokens: int
    """Tokens that may be added to one prompt."""
    max_prompt_tokens: int
    max_batch: int = 16
    """Texts that are written at the same time."""
    max_queue: int = 64
    """Texts that wait for their turn."""
    max_choices: int = 16
    """Texts of one request: prompts times n."""
    max_body_bytes: int = 1_048_576
    max_connections: int = 128
    request_seconds: float = 30.0
    """For a request to arrive; and for a client to take what is sent to it."""
    grace_seconds: float = 30.0
    """For texts to be finished after SIGTERM or Ctrl-C."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 1 and not (field.name == "grace_seconds" and value >= 0):
                raise ValueError(f"{field.name.replace('_', ' ')} = {value:g}; it must be 1 or more.")
        if self.max_prompt_tokens > self.context_length:
            raise ValueError(f"max prompt tokens = {self.max_prompt_tokens}; the model has {self.context_length} positions.")
