"""From a request to texts and back: prompts to sequences, their pieces to OpenAI's answers."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from inference.generation.settings import SamplingParams, seed_of
from inference.server.batcher import Batcher
from inference.server.errors import ApiError, busy
from inference.server.schemas import DEFAULT_MAX_TOKENS, Choice, Completion, CompletionRequest, Logprobs, Usage
from inference.server.sequence import Piece, SequenceState, Token

_LOWEST_LOGPROB = -9999.0  # OpenAI's, for what JSON cannot say


@dataclass(frozen=True)
class CompletionService:
    """What is needed to serve completions: the model's name, and who writes."""

    model: str
    batcher: Batcher
    created: int = field(default_factory=lambda: int(time.time()))

    def check_model(self, name: str) -> None:
        """There is one model, and who means another should know."""
        if name != self.model:
            raise ApiError(404, f'there is no such model here; this server has "{self.model}".', param="model", code="model_not_found")

    def begin(self, request: CompletionRequest) -> "PendingCompletion":
        """Begin the texts of a request. Whoever does not wait for all of them calls `PendingCompletion.cancel`.

        Raises:
            ApiError: If the request is for another model or beyond a limit, or nothing more can be queued.
        """
        self.check_model(request.model)
        pending = PendingCompletion(self, request)
        self.batcher.submit(pending.sequences)
        return pending

    def prompts(self, request: CompletionRequest) -> list[list[int]]:
        """Token ids of all prompts.

        Raises:
            ApiError: If there is none, or one does not fit.
        """
        given = request.prompt
        several: list[Any] = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
        num_choices = len(several) * (request.n or 1)
        if not several:
            raise ApiError(400, "prompt: there is none.", param="prompt")
        most = self.batcher.limits.most_choices
        if num_choices > most:
            raise ApiError(400, f"prompts x n = {num_choices}; at most {most} texts are written for one request.", param="n")
        return [self._prompt(prompt, request) for prompt in several]

    def _prompt(self, prompt: str | list[int], request: CompletionRequest) -> list[int]:
        engine, limits = self.batcher.engine, self.batcher.limits
        if isinstance(prompt, str) and len(prompt) > 64 * limits.max_prompt_tokens:
            # Tokenizing takes time; no token is that long on average.
            raise ApiError(400, f"prompt: is far longer than {limits.max_prompt_tokens} tokens. Shorten it.", param="prompt")
        ids = engine.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        if not ids:
            raise ApiError(400, "prompt: has no tokens. Give at least one character for the model to continue.", param="prompt")
        if max(ids) >= engine.vocab_size:
            raise ApiError(400, f"prompt: {max(ids)} is no token; the vocabulary has {engine.vocab_size}.", param="prompt")
        if len(ids) > limits.max_prompt_tokens:
            raise ApiError(400, f"prompt: has {len(ids)} tokens; at most {limits.max_prompt_tokens} are read.", param="prompt")
        wanted = _max_tokens(request)
        if wanted > limits.max_tokens:
            raise ApiError(400, f"max_tokens = {wanted}; at most {limits.max_tokens} are written.", param="max_tokens")
        if len(ids) + wanted > limits.max_context:
            room = limits.max_context - len(ids)
            raise ApiError(
                400,
                f"the prompt has {len(ids)} tokens and max_tokens = {wanted}, but the model holds {limits.max_context} in all. "
                f"Ask for at most {room}.",
                param="max_tokens",
                code="context_length_exceeded",
            )
        return ids


def _max_tokens(request: CompletionRequest) -> int:
    return DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens


@dataclass
class PendingCompletion:
    """The texts of one request, and their pieces as they come."""

    service: CompletionService
    request: CompletionRequest
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        prompts, request = self.service.prompts(self.request), self.request
        self._tokenizer = self.service.batcher.engine.tokenizer
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self._started = time.perf_counter()
        # A seed of its own for each request that has none.
        seed = secrets.randbits(63) if request.seed is None else request.seed
        number = request.n or 1
        self.num_prompt_tokens = sum(map(len, prompts))
        self.sequences = [
            self._sequence(index, prompts[index // number], seed_of(index % number, seed)) for index in range(len(prompts) * number)
        ]

    def _sequence(self, index: int, prompt: list[int], seed: int) -> SequenceState:
        request = self.request
        sampling = SamplingParams(
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=seed,
            stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
        )

        def tell(piece: Piece) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended, and its loop with it
                self._loop.call_soon_threadsafe(self._pieces.put_nowait, (index, piece))

        return SequenceState(prompt, sampling, _max_tokens(request), self._tokenizer, tell, request.logprobs, bool(request.echo))

    def cancel(self) -> None:
        """Give up what is not finished."""
        for sequence in self.sequences:
            sequence.cancelled = True

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """(index of the text, piece) until all texts are over.

        Raises:
            ApiError: If a text cannot be finished.
        """
        left, first = len(self.sequences), True
        while left:
            index, piece = await self._pieces.get()
            if piece.finish_reason == "failed":
                raise ApiError(500, "the text could not be written; the server's log says why.")
            if piece.finish_reason == "cancelled":
                raise busy("the server is stopping.")
            if first and piece.text:
                self.service.batcher.metrics.first_text_seconds.observe(time.perf_counter() - self._started)
                first = False
            left -= piece.finish_reason is not None
            yield index, piece

    async def whole(self) -> Completion:
        """All texts, when they are finished."""
        parts: list[list[Piece]] = [[] for _ in self.sequences]
        async for index, piece in self.pieces():
            parts[index].append(piece)
        choices = []
        for index, part in enumerate(parts):
            tokens = tuple(token for piece in part for token in piece.tokens)
            whole = Piece("".join(piece.text for piece in part), tokens, part[-1].finish_reason)
            choices.append(self._choice(index, whole))
        return self._completion(choices, self.usage())

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events, the last of them [DONE]."""
        try:
            async for index, piece in self.pieces():
                yield _event(self._completion([self._choice(index, piece)], None).model_dump_json(exclude={"usage"}))
            if self.request.stream_options and self.request.stream_options.include_usage:
                yield _event(self._completion([], self.usage()).model_dump_json())
        except ApiError as error:
            yield _event(error.body())
        yield _event("[DONE]")

    def usage(self) -> Usage:
        """Of the whole request."""
        written = sum(len(sequence.tokens) for sequence in self.sequences)
        return Usage(prompt_tokens=self.num_prompt_tokens, completion_tokens=written, total_tokens=self.num_prompt_tokens + written)

    def _completion(self, choices: list[Choice], usage: Usage | None) -> Completion:
        return Completion(id=self.id, created=self.created, model=self.service.model, choices=choices, usage=usage)

    def _choice(self, index: int, piece: Piece) -> Choice:
        reason = piece.finish_reason
        assert reason in (None, "stop", "length")
        logprobs = None if self.request.logprobs is None else self._logprobs(piece.tokens)
        return Choice(text=piece.text, index=index, logprobs=logprobs, finish_reason=reason)

    def _logprobs(self, tokens: tuple[Token, ...]) -> Logprobs:
        spell = self._tokenizer.spell
        top = [{spell(index): _finite(logprob) for index, logprob in token.top} if token.logprob is not None else None for token in tokens]
        return Logprobs(
            tokens=[spell(token.id) for token in tokens],
            token_logprobs=[None if token.logprob is None else _finite(token.logprob) for token in tokens],
            top_logprobs=top if self.request.logprobs else None,
            text_offset=[token.offset for token in tokens],
        )


def _event(data: str) -> str:
    return f"data: {data}\n\n"


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST_LOGPROB)
