"""Take over a tokenizer made elsewhere: a tokenizer.json, a Hugging Face folder, or a sentencepiece .model.

Files are read as data. Code that a folder may bring along is neither copied nor run.
"""

import logging
from pathlib import Path
from typing import Any

import tokenizers

from data.config import TokenizerConfig
from data.documents import DataError
from data.tokenizers import sentencepiece_model, tokenizer_folder
from ds_configs.atomic_files import read_object

logger = logging.getLogger(__name__)

# Where a tokenizer does not say which token ends a text.
_USUAL_ENDS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]")
_RARE = "\U0002ebe0"  # A letter of Chinese, so that no rule drops it, and the last of its table.
_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


def find_files(path: str) -> list[Path]:
    """Return the files that make up the tokenizer at `path`, the deciding one first.

    Raises:
        DataError: If there is none that is known.
    """
    given = Path(path)
    if given.is_file() and given.suffix in (".json", ".model"):
        companions = [given.parent / "tokenizer_config.json"] if given.name in ("tokenizer.json", "tokenizer.model") else []
        return [given, *(companion for companion in companions if companion.is_file())]
    for names in (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt")):
        if all((given / name).is_file() for name in names):
            found = [given / name for name in (*names, "tokenizer_config.json", "special_tokens_map.json")]
            return [file for file in found if file.is_file()]
    raise DataError(
        f'data.tokenizer.path = "{path}": no tokenizer.json, tokenizer.model, or vocab.json with merges.txt there.'
        " Give one of these files or the folder that holds it."
    )


def adopt(config: TokenizerConfig, folder: Path) -> None:
    """Write the tokenizer at `config.path` as a folder of ours, giving the same ids.

    Raises:
        DataError: As `read`.
    """
    backend, names = read(config)
    special = {added.content for added in backend.get_added_tokens_decoder().values() if added.special}
    backend.add_special_tokens([token for token in names.values() if token not in special])
    backend.no_truncation()
    backend.no_padding()
    tokenizer_folder.save(backend, folder, names)


def read(config: TokenizerConfig) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The tokenizer at `config.path`, and which of its tokens are special: eos_token -> </s>. What is guessed or left out of these is said.

    Raises:
        ValueError: If it cannot be read, or has no token to end or, where the configuration asks for one, to begin a text.
    """
    assert config.path is not None, "checked by TokenizerConfig"
    files = find_files(config.path)
    backend = _read_backend(files)
    _say_what_is_lost(backend, files[0])
    names = _special_names(files, config)
    guess = next((token for token in _USUAL_ENDS if backend.token_to_id(token) is not None), None)
    if "eos_token" not in names and guess:
        logger.warning("%s does not say which token ends a text: %s is taken. data.tokenizer.eos_token names another one.", files[0], guess)
        names["eos_token"] = guess
    known = {name: token for name, token in names.items() if backend.token_to_id(token) is not None}
    for name, what in (("eos_token", "end-of-text"), ("bos_token", "begin-of-text")):
        if name not in known and (name == "eos_token" or config.add_bos or config.bos_token):
            said = f'its {what} token "{names[name]}" is not in the vocabulary' if name in names else f"no {what} token is named"
            why = ", but data.tokenizer.add_bos is true" if name == "bos_token" and config.add_bos else ""
            raise DataError(f"{files[0]}: {said}{why}. Name one of its tokens: data.tokenizer.{name}=...")
    if left_out := [f"{name} {names[name]}" for name in names.keys() - known.keys()]:
        logger.warning("%s: not in the vocabulary and left out: %s", files[0], ", ".join(sorted(left_out)))
    return backend, known


def vocabulary(path: str) -> dict[str, int]:
    """The tokens of the tokenizer at `path` and their ids.

    Raises:
        DataError: If there is none, or it cannot be read.
    """
    return _read_backend(find_files(path)).get_vocab(with_added_tokens=True)


def _read_backend(files: list[Path]) -> tokenizers.Tokenizer:
    first = files[0]
    if first.suffix == ".model":
        return sentencepiece_model.convert(first.read_bytes(), str(first))
    try:
        if first.name != "vocab.json":
            return tokenizers.Tokenizer.from_file(str(first))
        backend = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(first), str(files[1])))
    except Exception as error:  # the library raises bare Exceptions
        raise DataError(f"{first}: not a tokenizer that the tokenizers library can read ({error}).") from error
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


def _say_what_is_lost(backend: tokenizers.Tokenizer, file: Path) -> None:
    """See what becomes of a character that the vocabulary does not have, and of line breaks, which BERT's and T5's read as spaces."""
    try:
        ids, broken, spaced = (backend.encode(text, add_special_tokens=False).ids for text in (_RARE, "a\na", "a a"))
    except Exception as error:  # the library raises bare Exceptions
        said = f"{file}: a character that its vocabulary does not have cannot be encoded ({error})."
        raise DataError(f"{said} Give a tokenizer with a token for the unknown, or one that falls back to bytes.") from error
    if not ids:
        logger.warning("%s: characters that its vocabulary does not have are left out of the tokens, and nothing counts them", file)
    if broken == spaced:
        logger.warning("%s: line breaks are lost: its tokens of them are those of spaces, or none, and nothing counts them", file)


def _special_names(files: list[Path], config: TokenizerConfig) -> dict[str, str]:
    """What the configuration, else the files beside the tokenizer, say about its special tokens."""
    settings: dict[str, Any] = {}
    for file in files[1:]:
        if file.suffix == ".json":
            settings |= read_object(file, ".")
    names = {}
    for name in _NAMES:
        token = settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token:
            names[name] = token
    return names | {name: token for name in ("eos_token", "bos_token") if (token := getattr(config, name))}
