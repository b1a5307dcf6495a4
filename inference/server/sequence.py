"""One text that is being written: its prompt, its tokens, where it stops, and the pieces in which it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from inference.generation.drawing import CLOSE, draw, warp
from inference.generation.settings import Sampling
from inference.generation.stopping import StopFinder, Stops
from inference.generation.text import FolderTokenizer, TextStream

FinishReason = Literal["stop", "length", "cancelled", "failed"]


@dataclass(frozen=True)
class Settings:
    """How one text is to be written."""

    sampling: Sampling
    max_tokens: int
    """Instead of the sampling's own number of new tokens; 0 reads the prompt only."""
    logprobs: int | None = None
    """How many of the likeliest tokens are told beside each token; None tells no probabilities at all."""
    echo: bool = False


@dataclass(frozen=True)
class Token:
    """A token with natural logarithms of the model's own probabilities, before temperature and top-p."""

    id: int
    offset: int
    """Characters of the text before it, from the beginning of what is told."""
    logprob: float | None
    """None for the first token of a prompt, which nothing predicts."""
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """More of a text. With a finish reason it is the last."""

    text: str
    tokens: tuple[Token, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass
class Sequence:
    """Written by the thread that decodes; `tell` is called there with each piece, the last one included."""

    prompt: list[int]
    settings: Settings
    tokenizer: FolderTokenizer
    tell: Callable[[Piece], None]
    tokens: list[int] = field(default_factory=list)
    num_read: int = 0
    """Tokens of the prompt whose keys and values are there."""
    num_close: int = 0
    """Draws that were so close that another batch may decide otherwise."""
    finish_reason: FinishReason | None = None
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.settings.sampling.seed)
        self._stream = TextStream(self.tokenizer, self.prompt)
        self._stops = StopFinder(Stops(self.settings.sampling.stop), "")
        self._waiting: list[Token] = []
        self._length = self._told = 0

    @property
    def last_token(self) -> int:
        """The token to append next."""
        return self.tokens[-1]

    @property
    def next_position(self) -> int:
        """Where the last token goes."""
        return len(self.prompt) + len(self.tokens) - 1

    def cancel(self) -> None:
        """From any thread: nobody waits for this text any more."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether someone has called `cancel`."""
        return self._cancelled.is_set()

    def begin(self, text: str, logits: Tensor | None) -> None:
        """Tell the prompt, for `echo`.

        Args:
            text: The prompt.
            logits: (T, V) behind each of its tokens, if probabilities are told.
        """
        if logits is not None:
            self._waiting = self._of_prompt(logits)
        self._length = self._told = len(text)
        waiting, self._waiting = self._waiting, []
        self.tell(Piece(text, tuple(waiting)))

    def extend(self, scores: Tensor) -> None:
        """Draw the next token from scores (V,), and tell what is certain of the text by now."""
        settings = self.settings
        token, close = self._draw(scores)
        self.tokens.append(token)
        self.num_close += close
        if token in self.tokenizer.eos_ids:
            return self.finish("stop")
        if settings.logprobs is not None:
            self._waiting.append(_token(token, self._length, scores.log_softmax(0), settings.logprobs))
        text = self._stream.push(token)
        self._length += len(text)
        certain = self._stops.add(text)
        if self._stops.found is not None:
            return self._tell(certain, "stop")
        if len(self.tokens) == settings.max_tokens:
            return self.finish("length", certain)
        if certain:
            self._tell(certain, None)
        return None

    def _draw(self, scores: Tensor) -> tuple[int, bool]:
        if self.settings.sampling.temperature == 0:
            best = scores.topk(min(2, len(scores)))
            return int(best.indices[0]), len(scores) > 1 and float(best.values[0] - best.values[1]) < CLOSE
        return draw(warp(scores[None], self.settings.sampling)[0].softmax(0), self._generator)

    def finish(self, reason: FinishReason, certain: str = "") -> None:
        """Tell the rest: nothing will follow."""
        rest = certain + self._stops.add(self._stream.close())
        if self._stops.found is not None:
            reason = "stop"
        self._tell(rest + self._stops.rest(), reason)

    def _tell(self, text: str, reason: FinishReason | None) -> None:
        self._told += len(text)
        # A token is told with the first character that it began; one that a stop has cut off is not.
        cut = reason is None or self._stops.found is not None
        ready = [token for token in self._waiting if not cut or token.offset < self._told]
        self._waiting = self._waiting[len(ready) :]
        self.finish_reason = reason
        self.tell(Piece(text, tuple(ready), reason))

    def _of_prompt(self, logits: Tensor) -> list[Token]:
        """Probabilities of a prompt's own tokens."""
        assert self.settings.logprobs is not None
        stream, offset, tokens = TextStream(self.tokenizer, []), 0, []
        for index, token in enumerate(self.prompt):
            entry = Token(token, offset, None)
            if index:
                entry = _token(token, offset, logits[index - 1].log_softmax(0), self.settings.logprobs)
            tokens.append(entry)
            offset += len(stream.push(token))
        return tokens


def _token(token: int, offset: int, logprobs: Tensor, num_top: int) -> Token:
    top = logprobs.topk(min(num_top, len(logprobs)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return Token(token, offset, float(logprobs[token]), tuple(pairs))
