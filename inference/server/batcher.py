"""Write many texts at once: a thread that adds one token to every text, and between two tokens lets texts join and leave."""

import logging
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from inference.generation.engine import Engine
from inference.server.errors import busy
from inference.server.kv_cache import CachedModel
from inference.server.limits import Limits
from inference.server.metrics import Metrics
from inference.server.sequence import SequenceState

logger = logging.getLogger(__name__)

# So many tokens of prompts are read between two tokens of the texts: a long prompt does not make the others wait for all of it.
PROMPT_TOKENS_PER_STEP = 256


class Batcher:
    """Owns the engine's model: nobody else may call it while the thread runs."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        """Raises a ValueError if the model cannot be served so (`CachedModel.check`)."""
        self.engine, self.limits, self.metrics = engine, limits, Metrics()
        self._model = CachedModel(engine, limits.max_batch, limits.max_context)
        self._model.check()
        self._waiting: list[SequenceState] = []
        """Those whose prompt is not read to its end; the first may have been read in part."""
        self._running: list[SequenceState] = []
        """In the order of their rows."""
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)

    def start(self) -> None:
        """Begin to decode."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether texts are being written, or would be."""
        return self._thread.is_alive()

    def submit(self, sequences: Sequence[SequenceState]) -> None:
        """Queue texts, all or none.

        Raises:
            ApiError: 503 if they do not fit into the queue, or no text is begun any more.
        """
        with self._changed:
            if self._stopping:
                raise busy("the server is stopping.")
            free = self.limits.max_batch - len(self._running)
            if len(self._waiting) + len(sequences) > self.limits.max_queue + free:
                raise busy(f"{self.limits.max_queue} texts are waiting already. Try again a little later.")
            self._waiting.extend(sequences)
            self.metrics.waiting.set(len(self._waiting))
            self._changed.notify()

    def wind_down(self, *, at_once: bool = False) -> None:
        """Begin no text any more: those that wait end, those that are being read or written go on, or end before their next token."""
        with self._changed:
            self._stopping = True
            for sequence in [*self._waiting, *self._running]:
                sequence.cancelled |= at_once or not sequence.num_read
            self._changed.notify()

    def stop(self) -> None:
        """End every text, and the thread."""
        self.wind_down(at_once=True)
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._drop_cancelled()
                self._prefill()
                self._decode()
            except Exception:
                self._fail()

    def _wait_for_work(self) -> bool:
        """False if there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._waiting or self._running)
            return bool(self._waiting or self._running)

    def _drop_cancelled(self) -> None:
        """Drop texts that nobody waits for."""
        with self._changed:
            left = [sequence for sequence in [*self._waiting, *self._running] if sequence.cancelled]
        for sequence in left:
            sequence.end("cancelled")
        self._drop_ended()

    def _prefill(self) -> None:
        """Read from prompts, one after the other, as much as there is room and time for between two steps."""
        left = PROMPT_TOKENS_PER_STEP
        while left > 0 and self._waiting and len(self._running) < self.limits.max_batch:
            sequence = self._waiting[0]
            start = sequence.num_read
            part = sequence.prompt[start : start + left]
            sequence.num_read += len(part)
            left -= len(part)
            wanted = sequence.echo and sequence.logprobs is not None
            logits = self._model.prefill(part, start, all_logits=wanted)
            self.metrics.prompt_tokens.inc(len(part))
            if wanted:
                sequence.prompt_logits.append(logits)
            if sequence.num_read == len(sequence.prompt):
                self._begin_decoding(sequence, logits[-1])

    def _begin_decoding(self, sequence: SequenceState, logits: Tensor) -> None:
        """A prompt is read: give the text a row, and write the first token from logits (V,)."""
        if sequence.echo:
            sequence.tell_prompt()
        if sequence.max_tokens == 0:
            sequence.end("length")
        else:
            self._model.move(self._model.staging, len(self._running), len(sequence.prompt))
            with self._changed:
                self._running.append(self._waiting.pop(0))
            sequence.extend(logits, logits.index_fill(0, self.engine.unusable, -torch.inf))
            self.metrics.generated_tokens.inc()
        self._drop_ended()

    def _decode(self) -> None:
        """One token more for every text."""
        if not self._running:
            return
        logits = self._model.decode([text.tokens[-1] for text in self._running], [text.next_position for text in self._running])
        scores = logits.index_fill(1, self.engine.unusable, -torch.inf)
        for row, sequence in enumerate(self._running):
            sequence.extend(logits[row], scores[row])
        self.metrics.generated_tokens.inc(len(self._running))
        self.metrics.batch_size.observe(len(self._running))
        self._drop_ended()

    def _drop_ended(self) -> None:
        """Close the gaps that ended texts leave: rows in use are the first ones, so that they are read without being copied."""
        with self._changed:
            for sequence in [*self._waiting, *self._running]:
                if sequence.finish_reason:
                    self.metrics.ended(sequence)
            self._waiting = [sequence for sequence in self._waiting if not sequence.finish_reason]
            for row in reversed(range(len(self._running))):
                if not self._running[row].finish_reason:
                    continue
                last = self._running.pop()
                if row < len(self._running):
                    self._model.move(len(self._running), row, last.next_position)
                    self._running[row] = last
            self.metrics.waiting.set(len(self._waiting))
            self.metrics.running.set(len(self._running))

    def _fail(self) -> None:
        """Whatever is being handled, the texts of this batch cannot go on, but those of the next can."""
        with self._changed:
            begun = [*self._running, *(sequence for sequence in self._waiting if sequence.num_read)]
        logger.exception("inference.serve: a batch of %d texts failed", len(begun))
        for sequence in begun:
            if not sequence.finish_reason:
                sequence.end("failed")
        self._model = CachedModel(self.engine, self.limits.max_batch, self.limits.max_context)
        self._drop_ended()
