"""The tokenizer of a Hugging Face folder, and token ids turned into text while they arrive, up to where it stops.

The tokenizers library is used directly: a folder's `tokenizer.json` is all that is needed, and importing `transformers` takes seconds.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from ds_configs.atomic_files import read_object
from ds_configs.errors import shown
from inference.exporting.model_path import token_ids
from inference.generation.stopping import Stops
from training.checkpoints.find_and_verify import CheckpointError

BROKEN = "\ufffd"  # what bytes that form no character are decoded to

FinishReason = Literal["end_of_text", "stop", "length"]
"""Why a text has no more: the model ended it, a stop was written, or the limit was reached."""


class FolderTokenizer:
    """Text to ids and back, by the files of an exported folder."""

    def __init__(self, folder: Path) -> None:
        """Load `tokenizer.json`, and the end-of-text id from the folder's configuration.

        Raises:
            CheckpointError: If there is no such file, or it is not a tokenizer.
        """
        import tokenizers

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{folder}: has no tokenizer.json. Save the tokenizer there: AutoTokenizer...save_pretrained(folder).")
        try:
            self._backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise CheckpointError(f"{path}: is not a tokenizer ({error}). Export the run again.") from error
        # How a folder has batches padded and cut is nothing that a text says.
        self._backend.no_truncation()
        self._backend.no_padding()
        # Ours take texts literally; a chat model's folder does not say so, and its prompts spell special tokens out.
        self._backend.encode_special_tokens = read_object(folder / "tokenizer_config.json").get("split_special_tokens", False)
        eos = token_ids(folder)["eos_token_id"]
        self.eos_ids: tuple[int, ...] = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
        if not all(type(index) is int for index in self.eos_ids):
            raise CheckpointError(
                f"{folder}: its eos_token_id is {shown(eos)}; it must be the id of a token, or several. Correct its configuration."
            )
        unknown = getattr(self._backend.model, "unk_token", None)  # of the kinds without it, ours fall back to bytes
        unknown_id = self._backend.token_to_id(unknown) if unknown else None
        # Byte-level folders name the end of text for it, which may stand in front of every prompt; they have no unknown characters.
        self.unknown_id: int | None = None if unknown_id in self.eos_ids else unknown_id

    def encode(self, text: str, *, begins_document: bool = False) -> list[int]:
        """The ids of a prompt, with what the tokenizer puts in front of a text.

        Args:
            text: The prompt.
            begins_document: Put the end of a document in front, as before every document in training but the first, unless the tokenizer
                puts a beginning of its own there.
        """
        ids: list[int] = self._backend.encode(text).ids
        has_beginning = bool(self._backend.encode("").ids)
        return [*self.eos_ids[:1], *ids] if begins_document and not has_beginning else ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens have none."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=True)
        return text

    def spell(self, token: int) -> str:
        """A token as text. Part of a character has no text, and is told by its id."""
        # The second of two: some decoders (Llama's) take the space of a text's first token away.
        text = self.decode([token, token])[len(self.decode([token])) :]
        return f"token:{token}" if not text or BROKEN in text else text

    @cached_property
    def usable_ids(self) -> frozenset[int]:
        """Ids that may be generated: those that stand for text, and the end of it."""
        special = {index for index, token in self._backend.get_added_tokens_decoder().items() if token.special}
        return frozenset(self._backend.get_vocab(with_added_tokens=True).values()) - special | frozenset(self.eos_ids)


class GrowingText:
    """What follows one prompt, token by token, in pieces that never end inside a character, up to where it stops.

    A character may be spread over several byte-level tokens: it comes out with the last of them. Bytes that form no character,
    which a model that has learned little writes often, are left out.
    """

    def __init__(self, tokenizer: FolderTokenizer, prompt: Sequence[int], stops: Stops) -> None:
        self._tokenizer = tokenizer
        # Decoded along with what follows: some decoders treat the first token of a text differently, or bytes that stand beside others.
        self._ids = list(prompt)
        # A character has at most four bytes: one that the prompt only begins is new text, with all of its bytes.
        ends = range(max(0, len(prompt) - 3), len(prompt) + 1)
        given = {end: tokenizer.decode(prompt[:end]).rstrip(BROKEN) for end in ends}
        self._context, self._told = 0, max(ends, key=lambda end: len(given[end]))
        self.given = given[self._told].replace(BROKEN, "")
        """The text of the prompt, up to its last whole character."""
        self._stops = stops
        # The end of the prompt tells whether the new text begins a line.
        self._written = self.given[-1:]
        self._shown = len(self._written)
        self.text = ""
        """What is certain by now."""
        self.length = 0
        """Characters that were written, including those that may become part of a stop."""
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None

    def push(self, token: int) -> str:
        """The text that is certain with one more token, maybe empty."""
        self.num_tokens += 1
        if token in self._tokenizer.eos_ids:
            return self.close("end_of_text")
        return self.add(token)

    def add(self, token: int) -> str:
        """As `push`, of text that is given: an end-of-text token does not end it."""
        self._ids.append(token)
        return self._advance()

    def close(self, reason: FinishReason) -> str:
        """The rest of the text, when no token will follow."""
        shown = self._advance(is_last=True)
        self.finish_reason = self.finish_reason or reason
        return shown

    def _advance(self, *, is_last: bool = False) -> str:
        written, new = self._tokenizer.decode(self._ids[self._context :]), ""
        if is_last or not written.endswith(BROKEN):
            before = self._tokenizer.decode(self._ids[self._context : self._told]).rstrip(BROKEN)
            self._context, self._told = self._told, len(self._ids)
            new = written[len(before) :].replace(BROKEN, "")
        self.length += len(new)
        self._written += new
        certain, stops = self._stops.certain(self._written, self._shown, is_last=is_last)
        shown, self._shown = self._written[self._shown : certain], certain
        if stops:
            self.finish_reason = "stop"
        self.text += shown
        return shown
