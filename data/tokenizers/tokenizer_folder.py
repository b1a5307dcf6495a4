"""A tokenizer is a folder; this module loads and writes such folders. How one is trained is `trainers.py`.

Every folder holds `tokenizer.json` and `tokenizer_config.json`, so that `AutoTokenizer.from_pretrained(folder)` gives the
same ids. Texts are taken literally: a text in which <|endoftext|> is spelled out gets the ids of its letters.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from data.documents import DataError
from data.tokenizers.encoders import Encoder, fastest, reference_encoder
from ds_configs.atomic_files import write_json

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer:
    """Text to ids and back."""

    def __init__(self, folder: Path, backend: tokenizers.Tokenizer, settings: dict[str, Any]) -> None:
        self._folder = folder
        self._backend = backend
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()  # Folders of others may say how a batch is cut and padded.
        self._backend.no_padding()
        eos_id = backend.token_to_id(settings["eos_token"])
        assert eos_id is not None, "checked by load()"
        self.eos_id = eos_id
        self.bos_id = backend.token_to_id(settings.get("bos_token") or "")
        self._named_unknown: str | None = settings.get("unk_token")

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, special tokens included: the least a model's vocabulary may have."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def unk_id(self) -> int | None:
        """What becomes of characters that the vocabulary does not have, if the folder or the rules of the tokenizer name it."""
        unk_id = self._backend.token_to_id(self._named_unknown or getattr(self._backend.model, "unk_token", None) or "")
        if unk_id is None and isinstance(self._backend.model, tokenizers.models.Unigram):
            unk_id = json.loads(self._backend.to_str())["model"]["unk_id"]
        # GPT-2's and OPT's folders name the end of text for it too; their byte-level BPE has no unknown characters.
        return None if unk_id == self.eos_id else unk_id

    @cached_property
    def fast(self) -> Encoder:
        """The fastest encoder for many texts on this machine; the ids are those of `encode`."""
        return fastest(self._folder, self._backend)

    @cached_property
    def reference(self) -> Encoder:
        """The encoder of the `tokenizers` library."""
        return reference_encoder(self._backend)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens around it."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`. Special tokens have none; bytes that are no whole character become �."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def token(self, index: int) -> str:
        """The text of one id as a person reads it; the name of a special token; <E5> for a byte."""
        if index in self.special_ids:
            return self._backend.id_to_token(index) or ""
        text = self._backend.decode([index], skip_special_tokens=False)
        return text if "\ufffd" not in text else self._backend.id_to_token(index) or ""

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that stand for no text."""
        decoder = self._backend.get_added_tokens_decoder()
        return frozenset(index for index, token in decoder.items() if token.special)

    @cached_property
    def chars_per_id(self) -> np.ndarray:
        """(V,) int64: how many characters begin in each token, so that sums over a text count its characters."""
        counts = np.zeros(self.vocab_size, dtype=np.int64)
        for token, index in self._backend.get_vocab(with_added_tokens=True).items():
            if index not in self.special_ids:
                counts[index] = sum(byte & 0xC0 != 0x80 for byte in self._bytes_of(token))
        if self.unk_id is not None:
            counts[self.unk_id] = 1
        return counts

    @cached_property
    def chars_before(self) -> int:
        """How many of these characters are put before a text: the space of many sentencepiece models."""
        return max(0, int(self.chars_per_id[self.encode("一")].sum()) - 1)

    @cached_property
    def fallback_ids(self) -> np.ndarray:
        """Ids that a text falls back to where the vocabulary has no token for it: unknown, or single bytes of a character."""
        found = set() if self.unk_id is None else {self.unk_id}
        for token, index in self._backend.get_vocab(with_added_tokens=True).items():
            is_byte = len(token) == 1 if self._is_byte_level else _BYTE_TOKEN.fullmatch(token)
            if is_byte and self._bytes_of(token) >= b"\x80":  # Others, such as the line feed of sentencepiece, are whole characters.
                found.add(index)
        return np.array(sorted(found), dtype=np.int64)

    @cached_property
    def _is_byte_level(self) -> bool:
        return "ByteLevel" in str(self._backend.pre_tokenizer)

    def _bytes_of(self, token: str) -> bytes:
        """What a token stands for in UTF-8: byte-level BPE writes each byte as a letter, others write single bytes as <0xE5>."""
        if self._is_byte_level:
            return bytes(_byte_of_letter()[letter] for letter in token if letter in _byte_of_letter())
        byte = _BYTE_TOKEN.fullmatch(token)
        continuing = getattr(self._backend.model, "continuing_subword_prefix", None) or ""  # "##" in WordPiece.
        return bytes([int(byte[1], 16)]) if byte else token.removeprefix(continuing).encode("utf-8", "surrogatepass")


@cache
def _byte_of_letter() -> dict[str, int]:
    """Which byte each letter of the byte-level alphabet stands for (GPT-2's table: printable bytes are themselves)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def save(backend: tokenizers.Tokenizer, folder: Path, settings: dict[str, Any]) -> None:
    """Write a tokenizer as `folder`. `settings` holds the names of its special tokens, and what else AutoTokenizer reads."""
    folder.mkdir(parents=True, exist_ok=True)
    # Not by its own `save`, which raises a bare Exception where the disk is full.
    (folder / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
    # The plain class reads tokenizer.json and nothing else. Others build rules of their own, and then ids may differ.
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "split_special_tokens": True}
    write_json(folder / "tokenizer_config.json", {**plain, **settings}, indent=2)


def load(folder: Path | str) -> Tokenizer:
    """Load a tokenizer folder.

    Raises:
        DataError: If the folder has no tokenizer, or one without an end-of-text token.
    """
    folder = Path(folder)
    path = folder / "tokenizer_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        path = folder / "tokenizer.json"
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise DataError(f"{path}: no usable tokenizer ({error}). Prepare the data again, or give the right folder.") from error
    if backend.token_to_id(settings.get("eos_token") or "") is None:
        raise DataError(f"{folder}/tokenizer_config.json names no eos_token that is in the vocabulary; documents could not be told apart.")
    return Tokenizer(folder, backend, settings)


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 of what decides the ids: the names and contents of the folder's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode("utf-8") + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
