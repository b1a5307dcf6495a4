"""Write many texts at once: a thread that adds one token to every text, and between two tokens lets texts join and leave."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence as Many

import torch
from torch import Tensor

from inference.generation.drawing import Usable
from inference.generation.engine import Engine
from inference.server.metrics import Metrics
from inference.server.sequence import FinishReason, Piece, Sequence
from inference.server.slots import Slots

logger = logging.getLogger(__name__)

# So many tokens of prompts are read between two tokens of the texts: a long prompt does not make the others wait for all of it.
PROMPT_TOKENS_PER_STEP = 256


class QueueFullError(Exception):
    """As many texts wait as may."""


class StoppingError(Exception):
    """The server is about to end."""


class Batcher:
    """Owns the engine's model: nobody else may call it while the thread runs."""

    def __init__(self, engine: Engine, num_slots: int, num_positions: int, max_waiting: int, metrics: Metrics) -> None:
        self._sizes = (engine, num_slots, num_positions)
        self._slots = Slots(*self._sizes)
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        """In the order of their rows."""
        self._reading: Sequence | None = None
        self._prompt_logits: list[Tensor] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._usable = Usable(engine.tokenizer.usable_ids, engine.vocab_size, torch.device("cpu"))
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)

    def start(self) -> None:
        """Begin to decode."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether texts are being written, or would be."""
        return self._thread.is_alive()

    def submit(self, sequences: Many[Sequence]) -> None:
        """Queue texts, all or none.

        Raises:
            QueueFullError: If they do not fit into the queue.
            StoppingError: If no text is begun any more.
        """
        with self._changed:
            if self._stopping:
                raise StoppingError
            free = self._sizes[1] - len(self._running) - (self._reading is not None)
            if len(self._waiting) + len(sequences) > self._max_waiting + free:
                raise QueueFullError
            self._waiting.extend(sequences)
            self._metrics.waiting.set(len(self._waiting))
            self._changed.notify()

    def wind_down(self) -> None:
        """Begin no text any more: those that wait end at once, those that are being written go on."""
        with self._changed:
            self._stopping = True
            for sequence in self._waiting:
                sequence.cancel()
            self._changed.notify()

    def stop(self) -> None:
        """End every text now, and the thread."""
        self.wind_down()
        with self._changed:
            for sequence in [*self._running, *([self._reading] if self._reading else [])]:
                sequence.cancel()
            self._changed.notify()
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._leave()
                self._read_prompts()
                self._step()
            except Exception:
                # Whatever it was, the texts of this batch cannot go on, but those of the next can.
                logger.exception("inference.serve: a batch of %d texts failed", len(self._running) + (self._reading is not None))
                self._end_all("failed")
                self._slots = Slots(*self._sizes)

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not (self._waiting or self._running or self._reading):
                if self._stopping:
                    return False
                self._changed.wait()
        return True

    def _leave(self) -> None:
        """Drop texts that nobody waits for."""
        with self._changed:
            left = [sequence for sequence in self._waiting if sequence.cancelled]
            self._waiting = deque(sequence for sequence in self._waiting if not sequence.cancelled)
            self._metrics.waiting.set(len(self._waiting))
        if self._reading and self._reading.cancelled:
            left.append(self._reading)
            self._reading = None
        left += [sequence for sequence in self._running if sequence.cancelled]
        for sequence in left:
            self._end(sequence, "cancelled")
        self._free_rows()

    def _read_prompts(self) -> None:
        """Read from prompts, one after the other, as much as there is room and time for between two steps."""
        left = PROMPT_TOKENS_PER_STEP
        while left > 0 and len(self._running) < self._sizes[1]:
            with self._changed:
                if self._reading is None and self._waiting:
                    self._reading, self._prompt_logits = self._waiting.popleft(), []
                self._metrics.waiting.set(len(self._waiting))
            sequence = self._reading
            if sequence is None:
                return
            part = sequence.prompt[sequence.num_read : sequence.num_read + left]
            wanted = sequence.settings.echo and sequence.settings.logprobs is not None
            logits = self._usable(None, self._slots.read(part, sequence.num_read, all_logits=wanted))
            sequence.num_read += len(part)
            left -= len(part)
            self._metrics.prompt_tokens.inc(len(part))
            if wanted:
                self._prompt_logits.append(logits)
            if sequence.num_read == len(sequence.prompt):
                self._join(sequence, logits)

    def _join(self, sequence: Sequence, logits: Tensor) -> None:
        """A prompt is read: write the first token, and give the text a row."""
        if sequence.settings.echo:
            whole = torch.cat(self._prompt_logits) if self._prompt_logits else None
            sequence.begin(sequence.tokenizer.decode(sequence.prompt), whole)
        if sequence.settings.max_tokens == 0:
            self._end(sequence, "length")
            self._reading = None
            return
        self._slots.move(self._slots.staging, len(self._running), len(sequence.prompt))
        with self._changed:
            self._running.append(sequence)
            self._reading = None
        self._extend(sequence, logits[-1])
        self._free_rows()

    def _step(self) -> None:
        """One token more for every text."""
        if not self._running:
            return
        logits = self._slots.step([text.last_token for text in self._running], [text.next_position for text in self._running])
        logits = self._usable(None, logits)
        for row, sequence in enumerate(self._running):
            self._extend(sequence, logits[row])
        self._metrics.batch_size.observe(len(self._running))
        self._free_rows()

    def _extend(self, sequence: Sequence, scores: Tensor) -> None:
        sequence.extend(scores)
        self._metrics.generated_tokens.inc()
        if sequence.finish_reason:
            self._metrics.ended(sequence)

    def _free_rows(self) -> None:
        """Close the gaps that ended texts have left: rows in use are the first ones, so that they are read without being copied."""
        with self._changed:
            for row in reversed(range(len(self._running))):
                if self._running[row].finish_reason is None:
                    continue
                last = self._running.pop()
                if row < len(self._running):
                    self._slots.move(len(self._running), row, last.next_position)
                    self._running[row] = last
            self._metrics.running.set(len(self._running))

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        if reason == "length":
            sequence.finish(reason)
        else:
            sequence.finish_reason = reason
            sequence.tell(Piece("", (), reason))
        self._metrics.ended(sequence)

    def _end_all(self, reason: FinishReason) -> None:
        reading = [self._reading] if self._reading else []
        for sequence in [*self._running, *reading]:
            if sequence.finish_reason is None:
                self._end(sequence, reason)
        with self._changed:
            self._running, self._reading = [], None
        self._metrics.running.set(0)
