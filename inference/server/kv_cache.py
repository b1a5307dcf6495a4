"""Keys and values of many texts of different lengths, one text in each row, read and written in place.

No row is padded: every text begins at position 0 of its row, and a mask hides what lies beyond its end. A text so gets the positions
that it has alone, in every model that takes position ids and a four-dimensional mask (GPT-2, OPT, Llama); `check` finds out the others.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from ds_configs.errors import first_line
from inference.generation.engine import Engine

# Of the logits' spread, by which those of a text alone and among others may differ: sums in another order, in 16 bits far less than this.
_TOLERANCE = {"fp32": 1e-3}


class CachedModel:
    """The engine's model, with a memory for `num_texts` texts and one more row in which a prompt is read.

    Used under `torch.inference_mode`.
    """

    def __init__(self, engine: Engine, num_texts: int, num_positions: int) -> None:
        """Make room. Every layer looks back over all positions, so there are no more than its `attention_window`."""
        self.staging = num_texts
        """The row in which a prompt is read, until its text joins the others."""
        self._engine = engine
        self._num_positions = num_positions
        self._device, self._dtype = engine.core.module.device, engine.core.module.dtype
        self._layers = [
            _Layer(num_texts + 1, num_positions) for _ in range(engine.core.module.config.get_text_config(decoder=True).num_hidden_layers)
        ]
        self._cache = Cache(layers=list(self._layers))

    @torch.inference_mode()
    def check(self) -> None:
        """Hold a few tokens of two texts, read in parts and continued together, against the model alone.

        Raises:
            ValueError: If the model fails, or gives other logits: it would write other texts than `inference.generate`.
        """
        ids = [number % self._engine.vocab_size for number in range(1, 9)]
        prompts, last = [ids[:5], ids[5:7]][: self.staging], ids[7]
        if self._num_positions <= len(prompts[0]):
            return
        try:
            for row, tokens in enumerate(prompts):
                self.prefill(tokens[:1], 0, all_logits=False)
                self.prefill(tokens[1:], 1, all_logits=False)
                self.move(self.staging, row, len(tokens))
            together = self.decode([last] * len(prompts), [len(tokens) for tokens in prompts])
            texts = [torch.tensor([[*tokens, last]], device=self._device) for tokens in prompts]
            alone = torch.stack([self._engine.core(input_ids=text).logits[0, -1].float().cpu() for text in texts])
            problem = "its logits are not those of the model alone"
            agree = bool((together - alone).square().mean().sqrt() <= _TOLERANCE.get(self._engine.dtype, 0.1) * alone.std())
        except Exception as error:
            problem, agree = first_line(error), False
        if not agree:
            raise ValueError(
                f"this model does not take texts of different lengths as the server has them ({problem}). Use inference.generate."
            )

    def prefill(self, tokens: list[int], start: int, *, all_logits: bool) -> Tensor:
        """Read part of a prompt into the staging row.

        Args:
            tokens: The next token ids of the prompt.
            start: The position of the first of them.
            all_logits: Whether the logits behind every token are wanted, or only those behind the last.

        Returns:
            Logits in fp32 on the CPU, (T, V) or (1, V).
        """
        rows = slice(self.staging, self.staging + 1)
        return self._forward(rows, torch.tensor([tokens]), torch.tensor([start]), 0 if all_logits else 1)[0]

    def decode(self, tokens: list[int], starts: list[int]) -> Tensor:
        """Append one token to each of the first B rows.

        Args:
            tokens: The new token of each row.
            starts: Its position.

        Returns:
            Logits of the next token in fp32 on the CPU, (B, V).
        """
        return self._forward(slice(0, len(tokens)), torch.tensor(tokens)[:, None], torch.tensor(starts), 1)[:, -1]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a row over another row."""
        for layer in self._layers:
            layer.move(source, target, length)

    def _forward(self, rows: slice, tokens: Tensor, starts: Tensor, logits_to_keep: int) -> Tensor:
        """Tokens (B, T) -> logits (B, T or 1, V); writes their keys and values."""
        tokens, starts = tokens.to(self._device), starts.to(self._device)
        positions = starts[:, None] + torch.arange(tokens.shape[1], device=self._device)
        length = int(positions.max()) + 1
        for layer in self._layers:
            layer.aim(rows, positions, length)
        # (B, 1, T, length): a token sees its own position and those before it. Added to the scores, which every kind of attention takes:
        # those that are written out in Python would add 1 for a true and 0 for a false.
        hidden = torch.arange(length, device=self._device) > positions[:, None, :, None]
        mask = torch.zeros_like(hidden, dtype=self._dtype).masked_fill(hidden, torch.finfo(self._dtype).min)
        output = self._engine.core(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=logits_to_keep,
        )
        return output.logits.float().cpu()


class _Layer(CacheLayerMixin):
    """One layer's keys and values, each (rows, K, positions, E), in the form in which transformers' models take them."""

    is_sliding = False

    def __init__(self, num_rows: int, num_positions: int) -> None:
        super().__init__()
        self._shape = (num_rows, num_positions)
        self._rows, self._length = slice(0, 0), 0
        self._positions: Tensor
        self._row_numbers: Tensor

    def aim(self, rows: slice, positions: Tensor, length: int) -> None:
        """Say where the next keys and values go: rows, positions (B, T), and how many positions are read back."""
        self._rows, self._positions, self._length = rows, positions, length
        self._row_numbers = torch.arange(rows.start, rows.stop, device=positions.device)[:, None]

    def move(self, source: int, target: int, length: int) -> None:
        for buffer in (self.keys, self.values):
            assert buffer is not None
            buffer[target, :, :length] = buffer[source, :, :length]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        num_rows, num_positions = self._shape
        # Zeros, since what a mask hides is still multiplied by 0, and NaN would remain. On Linux untouched zeros take no memory.
        self.keys, self.values = (
            torch.zeros(num_rows, states.shape[1], num_positions, states.shape[3], dtype=states.dtype, device=states.device)
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, E) of each; gives back all that the rows hold, (B, K, length, E)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        self.keys[self._row_numbers, :, self._positions] = key_states.transpose(1, 2)
        self.values[self._row_numbers, :, self._positions] = value_states.transpose(1, 2)
        return self.keys[self._rows, :, : self._length], self.values[self._rows, :, : self._length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._length, 0

    def get_seq_length(self) -> int:
        return self._length

    def get_max_length(self) -> int:
        return self._shape[1]
