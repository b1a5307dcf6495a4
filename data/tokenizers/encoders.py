"""Fast ways from many texts to their ids. All of them give the ids of the folder's `tokenizer.json`, only sooner.

Texts are taken literally: the name of a special token inside a text gets the ids of its letters.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

logger = logging.getLogger(__name__)

EVERY_CHARACTER = r"[\s\S]"
"""The regular expression by which a tokenizer of characters cuts its text."""

# gigatoken remembers every pretoken it has seen and never forgets; a fresh one now and then bounds the memory.
_GIGATOKEN_LIFE_CHARS = 64 << 20
# So many texts at first, and then one in so many, are also encoded by the reference, and must come out the same.
_CHECKED_FIRST = 100
_CHECKED_EVERY = 50


Encoder = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]
"""From a batch of texts to the ids of all of them end to end, and (len(texts),) how many belong to each."""


def flatten(rows: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Lay rows of ids end to end: (ids, lengths)."""
    lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
    ids = np.concatenate([np.asarray(row, dtype=np.uint32) for row in rows]) if rows else np.empty(0, dtype=np.uint32)
    return ids, lengths


def reference_encoder(backend: tokenizers.Tokenizer) -> Encoder:
    """The `tokenizers` library itself: what the other encoders are measured against."""
    return lambda texts: flatten([encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)])


class CharacterEncoder:
    """One id for each character, by looking code points up in a table."""

    def __init__(self, vocabulary: dict[str, int], unknown: str) -> None:
        unknown_id = vocabulary[unknown]
        self._table = np.full(0x110000, unknown_id, dtype=np.uint32)
        for token, index in vocabulary.items():
            if len(token) == 1:
                self._table[ord(token)] = index

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """See `Encoder`."""
        code_points = np.frombuffer("".join(texts).encode("utf-32-le"), dtype="<u4")
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        return self._table[code_points], lengths


class OtherIds(Exception):  # noqa: N818  # Not an error of anybody's: who encodes begins again with the reference.
    """A fast encoder gave other ids than the reference: what it encoded before is not to be trusted either."""


class GigatokenEncoder:
    """The gigatoken package, checked against the reference as it goes.

    Checked are its first texts, each text with a character that no checked one had, and one in `_CHECKED_EVERY` of the others.
    """

    def __init__(self, tokenizer_json: str, reference: Encoder) -> None:
        """Args: tokenizer_json: Contents of the file. reference: For the same file.

        Raises:
            ImportError: If gigatoken is not installed.
            Exception: Of any type, if it does not know this kind of tokenizer.
        """
        content = json.loads(tokenizer_json)
        # Without its special tokens it cannot find their names in a text, which is then taken literally.
        content["added_tokens"] = [token for token in content.get("added_tokens") or [] if not token["special"]]
        self._json = json.dumps(content, ensure_ascii=False)
        self._reference = reference
        self._known_characters = np.zeros(0x110000, dtype=bool)
        self._num_texts = 0
        self._renew()

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Raises OtherIds if a checked text gets other ids than from the reference."""
        if self._chars_left < 0:
            self._renew()
        rows = [self._gigatoken.encode(text) for text in texts]
        self._chars_left -= sum(map(len, texts))
        chosen = [index for index, text in enumerate(texts) if self._is_to_be_checked(text)]
        checked, lengths = self._reference([texts[index] for index in chosen])
        ids, wanted = flatten([rows[index] for index in chosen])
        if not (np.array_equal(ids, checked) and np.array_equal(lengths, wanted)):
            raise OtherIds
        return flatten(rows)

    def _is_to_be_checked(self, text: str) -> bool:
        self._num_texts += 1
        characters = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        is_due = self._num_texts <= _CHECKED_FIRST or self._num_texts % _CHECKED_EVERY == 0
        if not is_due and self._known_characters[characters].all():
            return False
        self._known_characters[characters] = True
        return True

    def _renew(self) -> None:
        import gigatoken

        self._gigatoken = gigatoken.Tokenizer.from_json(self._json)
        self._chars_left = _GIGATOKEN_LIFE_CHARS


def fastest(folder: Path, backend: tokenizers.Tokenizer) -> Encoder:
    """Return the fastest encoder there is for a tokenizer folder on this machine."""
    reference = reference_encoder(backend)
    content = (folder / "tokenizer.json").read_text(encoding="utf-8")
    unknown = _unknown_of_characters(json.loads(content))
    if unknown is not None:
        return CharacterEncoder(backend.get_vocab(), unknown)
    try:
        return GigatokenEncoder(content, reference)
    except ImportError:
        logger.info("gigatoken is not installed (requirements-data.txt): tokenizing takes several times as long")
    except Exception as error:  # its loader raises several types for a kind of tokenizer that it does not know
        logger.info("gigatoken does not know this tokenizer (%s): tokenizing takes several times as long", error)
    return reference


def _unknown_of_characters(content: dict[str, Any]) -> str | None:
    """The unknown token of a tokenizer that gives every character an id of its own; None if it is another kind."""
    cut = content.get("pre_tokenizer") or {}
    by_character = cut.get("type") == "Split" and cut.get("pattern") == {"Regex": EVERY_CHARACTER} and cut.get("behavior") == "Isolated"
    model = content["model"]
    whole_tokens = any(not token["special"] for token in content.get("added_tokens") or [])
    if not by_character or whole_tokens or content.get("normalizer") or model.get("type") != "WordLevel":
        return None
    return model["unk_token"] if model.get("unk_token") in model["vocab"] else None
