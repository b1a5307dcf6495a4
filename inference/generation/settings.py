"""How to draw the next token. Torch is not needed here, so that a mistake is told before anything slow is started."""

from __future__ import annotations

from dataclasses import dataclass

from inference.generation.stopping import Stops


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of one generation.

    The order of effect: repetition penalty, temperature, top-k, top-p.
    """

    new_tokens: int = 200
    temperature: float = 0.8
    """0 takes the likeliest token every time (greedy)."""
    top_k: int = 0
    """Draw from this many likeliest tokens; 0 is no limit."""
    top_p: float = 0.95
    """Draw from the likeliest tokens that together have this probability; 1 is no limit."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and of the text so far become less likely."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Texts that end the generated text; they are not part of it."""
    stop_at: tuple[str, ...] = ()
    """Of `stopping.BOUNDARIES`."""

    def __post_init__(self) -> None:
        if self.new_tokens < 1:
            raise ValueError(f"number of new tokens = {self.new_tokens}; it must be 1 or more.")
        if self.temperature != 0 and not 0.01 <= self.temperature <= 100:
            # Scores are divided by it, and must stay finite.
            raise ValueError(f"temperature = {self.temperature:g}; it must be 0 (greedy) or from 0.01 to 100, usually 0.7 to 1.")
        if self.top_k < 0:
            raise ValueError(f"top-k = {self.top_k}; it must be 0 (no limit) or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top-p = {self.top_p:g}; it must be above 0 and at most 1 (no limit).")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise ValueError(f"repetition penalty = {self.repetition_penalty:g}; it must be from 0.01 to 100, 1 is none.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed = {self.seed}; it must be 0 or more and below 2**63.")
        Stops(self.stop, self.stop_at)
