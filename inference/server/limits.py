"""How much a request, and all of them together, may ask for: each an option of the command. Torch is not needed here."""

import dataclasses
import math
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Beyond these a request is refused with a line that names the limit."""

    max_context: int = field(
        metadata={"help": "tokens of prompt and text together (the model's positions, or the window that its layers look back over)"}
    )
    max_prompt_tokens: int = field(metadata={"help": "tokens of a prompt (one less than --max-context)"})
    max_tokens: int = field(metadata={"help": "tokens to add to a prompt (--max-context)"})
    max_batch: int = field(default=16, metadata={"help": "texts that are written at a time"})
    max_queue: int = field(default=64, metadata={"help": "texts that wait for their turn"})
    max_choices: int = field(default=16, metadata={"help": "texts of one request: prompts times n"})
    max_body_bytes: int = field(default=1_048_576, metadata={"help": "bytes of a request"})
    max_connections: int = field(default=128, metadata={"help": "open connections"})
    request_seconds: float = field(default=30, metadata={"help": "for a request to arrive, and for a client to take its answer"})
    grace_seconds: float = field(default=30, metadata={"help": "for texts to be finished when the server is stopped"})

    def __post_init__(self) -> None:
        for limit in dataclasses.fields(self):
            value, least = getattr(self, limit.name), 0 if limit.name == "grace_seconds" else 1
            if not least <= value < math.inf:
                raise ValueError(f"{limit.name.replace('_', ' ')} = {value:g}; it must be {least} or more, and finite.")
        if self.max_prompt_tokens > self.max_context:
            raise ValueError(f"max prompt tokens = {self.max_prompt_tokens}; it must be at most max context = {self.max_context}.")

    @property
    def most_choices(self) -> int:
        """Texts that one request can have: more than are written and wait at a time would never be begun."""
        return min(self.max_choices, self.max_batch + self.max_queue)
