"""One text that is being written: its prompt, its tokens, and the pieces in which it is told."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from inference.generation.sampling import CLOSE, sample_token, warp
from inference.generation.settings import SamplingParams
from inference.generation.stopping import Stops
from inference.generation.text import FolderTokenizer, GrowingText

FinishReason = Literal["stop", "length", "cancelled", "failed"]


@dataclass(frozen=True)
class Token:
    """A token with natural logarithms of the model's own probabilities, before temperature and top-p."""

    id: int
    offset: int
    """Characters of the text before it, from the beginning of what is told."""
    logprob: float | None
    """None for the first token of a prompt, which nothing predicts."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens, and behind them the token itself, as OpenAI has it."""


@dataclass(frozen=True)
class Piece:
    """More of a text. With a finish reason it is the last."""

    text: str
    tokens: tuple[Token, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass
class SequenceState:
    """Written by the thread that decodes; `tell` is called there with each piece, the last one included."""

    prompt: list[int]
    sampling: SamplingParams
    max_tokens: int
    """Instead of the sampling's own number of new tokens; 0 reads the prompt only."""
    tokenizer: FolderTokenizer
    tell: Callable[[Piece], None]
    logprobs: int | None = None
    """How many of the likeliest tokens are told beside each token; None tells no probabilities at all."""
    echo: bool = False
    tokens: list[int] = field(default_factory=list)
    num_read: int = 0
    """Tokens of the prompt whose keys and values are there, or are being computed."""
    prompt_logits: list[Tensor] = field(default_factory=list)
    """(T, V) of each part that was read, if the probabilities of the prompt are to be told."""
    num_close: int = 0
    """Draws that were so close that another batch may decide otherwise."""
    finish_reason: FinishReason | None = None
    cancelled: bool = False
    """Set from any thread, when nobody waits for this text any more."""

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.sampling.seed)
        self._growing = GrowingText(self.tokenizer, self.prompt, self.sampling.stops)
        self._waiting: list[Token] = []
        self._echoed = 0
        """Characters of the prompt that were told."""

    @property
    def next_position(self) -> int:
        """Where the last token goes."""
        return len(self.prompt) + len(self.tokens) - 1

    def tell_prompt(self) -> None:
        """The first piece, for `echo`."""
        self._echoed = len(self._growing.given)
        self.tell(Piece(self._growing.given, self._prompt_tokens() if self.prompt_logits else ()))
        self.prompt_logits.clear()

    def extend(self, logits: Tensor, scores: Tensor) -> None:
        """Draw the next token from scores (V,), the logits of what may be written, and tell what is certain of the text by now."""
        token, close = self._draw(scores)
        self.tokens.append(token)
        self.num_close += close
        growing, offset = self._growing, self._echoed + self._growing.length
        shown = growing.push(token)
        if self.logprobs is not None and token not in self.tokenizer.eos_ids:
            self._waiting.append(_token(token, offset, logits.log_softmax(0), self.logprobs))
        if growing.finish_reason is None and len(self.tokens) == self.max_tokens:
            shown += growing.close("length")
        if growing.finish_reason is not None:
            self.finish_reason = "length" if growing.finish_reason == "length" else "stop"
        if shown or self.finish_reason:
            self._tell(shown)

    def end(self, reason: FinishReason) -> None:
        """Say that there is no more, wherever the text is."""
        self.finish_reason = reason
        self.tell(Piece("", (), reason))

    def _draw(self, scores: Tensor) -> tuple[int, bool]:
        if self.sampling.temperature == 0:
            best = scores.topk(min(2, len(scores)))
            return int(best.indices[0]), len(scores) > 1 and float(best.values[0] - best.values[1]) < CLOSE
        return sample_token(warp(scores[None], self.sampling)[0].softmax(0), self._generator)

    def _tell(self, text: str) -> None:
        # A token is told with the first character that it began; one that a stop has cut off is not.
        told = self._echoed + len(self._growing.text)
        cut = self._growing.finish_reason in (None, "stop")
        ready = [token for token in self._waiting if not cut or token.offset < told]
        self._waiting = self._waiting[len(ready) :]
        self.tell(Piece(text, tuple(ready), self.finish_reason))

    def _prompt_tokens(self) -> tuple[Token, ...]:
        assert self.logprobs is not None
        logits = torch.cat(self.prompt_logits)  # (T, V), behind each of the prompt's tokens
        growing, tokens = GrowingText(self.tokenizer, [], Stops()), []
        for index, token in enumerate(self.prompt):
            first = Token(token, growing.length, None)
            tokens.append(_token(token, growing.length, logits[index - 1].log_softmax(0), self.logprobs) if index else first)
            growing.add(token)
        return tuple(tokens)


def _token(token: int, offset: int, logprobs: Tensor, num_top: int) -> Token:
    top = logprobs.topk(min(num_top, len(logprobs)))
    pairs = zip([*top.indices.tolist(), token], [*top.values.tolist(), own := float(logprobs[token])], strict=True)
    return Token(token, offset, own, tuple(pairs))
