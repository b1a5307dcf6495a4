"""Take over a tokenizer made elsewhere: a tokenizer.json, a Hugging Face folder, or a sentencepiece .model.

Files are read as data. Code that a folder may bring along is neither copied nor run.
"""

import json
from pathlib import Path
from typing import Any

import tokenizers

from data.config import TokenizerConfig
from data.documents import DataError
from data.tokenizers import sentencepiece_model, tokenizer_folder

# Where a tokenizer does not say which token ends a text.
_USUAL_ENDS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]")
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
        DataError: If it cannot be read or does not say which token ends a text.
    """
    assert config.path is not None, "checked by TokenizerConfig"
    files = find_files(config.path)
    backend = _read_backend(files)
    names = _special_names(files, config)
    names.setdefault("eos_token", next((token for token in _USUAL_ENDS if backend.token_to_id(token) is not None), ""))
    known = {name: token for name, token in names.items() if backend.token_to_id(token) is not None}
    if "eos_token" not in known:
        named = names["eos_token"]
        said = f'its end-of-text token "{named}" is not in the vocabulary' if named else "no end-of-text token is named"
        raise DataError(f"{files[0]}: {said}. Name one of its tokens: data.tokenizer.eos_token=...")
    if config.bos_token and "bos_token" not in known:
        raise DataError(f'{files[0]}: data.tokenizer.bos_token = "{config.bos_token}" is not in the vocabulary. Name one of its tokens.')
    special = {added.content for added in backend.get_added_tokens_decoder().values() if added.special}
    backend.add_special_tokens([token for token in known.values() if token not in special])
    backend.no_truncation()
    backend.no_padding()
    tokenizer_folder.save(backend, folder, known)


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


def _special_names(files: list[Path], config: TokenizerConfig) -> dict[str, str]:
    """What the configuration, else the files beside the tokenizer, say about its special tokens."""
    settings: dict[str, Any] = {}
    for file in files[1:]:
        if file.suffix == ".json":
            try:
                settings |= json.loads(file.read_text(encoding="utf-8"))
            except (ValueError, TypeError) as error:
                raise DataError(f"{file}: not a JSON object ({error}).") from error
    names = {}
    for name in _NAMES:
        token = settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token:
            names[name] = token
    return names | {name: token for name in ("eos_token", "bos_token") if (token := getattr(config, name))}
