"""Tokenizers as folders: train one, load one. A folder is all that the rest of the system knows of a tokenizer.

Every folder holds `tokenizer.json` and `tokenizer_config.json`, so that `AutoTokenizer.from_pretrained(folder)` gives the
same ids. Texts are taken literally: a text in which <|endoftext|> is spelled out gets the ids of its letters.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.config import END_OF_TEXT, TokenizerConfig
from data.documents import DataError

if TYPE_CHECKING:
    import tokenizers


class Tokenizer:
    """Text to ids and back."""

    def __init__(self, backend: "tokenizers.Tokenizer", eos_id: int, bos_id: int | None) -> None:
        self._backend = backend
        self._backend.encode_special_tokens = True
        self.eos_id = eos_id
        self.bos_id = bos_id

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self._backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens around it."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text; faster than one at a time."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`. Special tokens have none; bytes that are no whole character become �."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    @cached_property
    def chars_per_id(self) -> np.ndarray:
        """(V,) int64: how many characters begin in each token, so that sums over a text count its characters."""
        counts = np.zeros(self.vocab_size, dtype=np.int64)
        specials = {token.content for token in self._backend.get_added_tokens_decoder().values()}
        for token, index in self._backend.get_vocab(with_added_tokens=True).items():
            counts[index] = 0 if token in specials else sum(_begins_character(c) for c in token)
        return counts


def _begins_character(letter: str) -> bool:
    """Whether a letter of a byte-level token stands for the first byte of a character: byte-level BPE writes bytes as letters."""
    byte = _byte_of_letter().get(letter)
    return byte is not None and byte & 0xC0 != 0x80


@cache
def _byte_of_letter() -> dict[str, int]:
    """Which byte each letter of the byte-level alphabet stands for (GPT-2's table: printable bytes are themselves)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def train(texts: Iterable[str], config: TokenizerConfig, folder: Path) -> None:
    """Train a tokenizer and save it as `folder`, which must not exist. The same texts give the same files.

    Raises:
        DataError: If the text is too small for the vocabulary.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    assert config.vocab_size is not None, "checked by TokenizerConfig"
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() < config.vocab_size:
        raise DataError(
            f"data.tokenizer.vocab_size = {config.vocab_size}: the training text is only enough for {backend.get_vocab_size()} tokens."
            " Ask for that many or fewer."
        )
    folder.mkdir(parents=True)
    backend.model.save(str(folder))
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load(folder: Path | str) -> Tokenizer:
    """Load a tokenizer folder.

    Raises:
        DataError: If the folder has no tokenizer, or one without an end-of-text token.
    """
    import tokenizers

    folder = Path(folder)
    try:
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exceptions
        raise DataError(
            f"{folder}: no usable tokenizer ({error}). Prepare the data again, or point to a folder with tokenizer.json."
        ) from error
    eos, bos = (backend.token_to_id(settings.get(name) or "") for name in ("eos_token", "bos_token"))
    if eos is None:
        raise DataError(f"{folder}/tokenizer_config.json names no eos_token that is in the vocabulary; documents could not be told apart.")
    return Tokenizer(backend, eos, bos)


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 of what decides the ids: the names and contents of the folder's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode("utf-8") + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
