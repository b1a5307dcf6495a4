"""Make the token store of a configuration: read, split, tokenize, write.

    python -m data.prepare CONFIG [dotted.key=value ...]

A store is named after the rules and the text it was made with; one that is there already is used again.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data import sources, store, tokenizer, train_tokenizer
from data.config import DataConfig
from data.documents import DataError, Document

logger = logging.getLogger(__name__)

_MIN_FREE_BYTES = 64 << 20


def find_store(config: DataConfig) -> Path | None:
    """Return the folder of the finished store of `config`, None if there is none. Imports neither torch nor deepspeed.

    Raises:
        DataError: If the corpus is unknown or its path does not exist.
    """
    folder = store_folder(config)
    return folder if (folder / store.MANIFEST).is_file() else None


def store_folder(config: DataConfig) -> Path:
    """Where the store of `config` lies, made or not: named after rules and text, so that a change of either is another folder."""
    text = [item.sha256 for item in sources.inputs(config)]
    key = store.digest({"format": store.FORMAT, "rules": config.rules(), "text": text})[:12]
    return Path(config.directory) / f"{config.name}-{key}"


def prepare(config: DataConfig) -> Path:
    """Make the store of `config` unless it is there, and return its folder.

    A store that is there is compared with its hashes. Two preparations at once do not disturb each other: the second waits.

    Raises:
        DataError: If the text cannot be read, is too short, or the disk is too full.
    """
    folder = store_folder(config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_name(folder.name + ".lock")):
        if (folder / store.MANIFEST).is_file():
            store.verify(folder, store.read_manifest(folder))
            logger.info("%s is up to date", folder)
            return folder
        _check_disk(config, folder.parent)
        work = folder.with_name(f".{folder.name}.work")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        _build(config, work)
        work.replace(folder)
    return folder


def _build(config: DataConfig, folder: Path) -> None:
    """Write all files of a store into an empty folder."""
    documents = [document for document in sources.documents(config) if document.text.strip()]
    if not documents:
        raise DataError(f"{config.path or config.corpus}: no text in it.")
    train, valid = split(documents, config)
    train_tokenizer.train((document.text for document in train), config.tokenizer, folder / "tokenizer")
    encoder = tokenizer.load(folder / "tokenizer")
    splits: dict[str, dict[str, Any]] = {}
    for name, part in (("train", train), ("valid", valid)):
        ids = (np.array([*encoder.encode(document.text), encoder.eos_id]) for document in part)
        counts = store.write_shard(folder / f"{name}-00000", ids, encoder.vocab_size)
        splits[name] = {"shards": [f"{name}-00000"], **counts, "chars": sum(len(document.text) for document in part)}
        logger.info("%s: %d documents, %d characters, %d tokens", name, counts["documents"], splits[name]["chars"], counts["tokens"])
    check_length(splits["train"]["tokens"], config)
    vocabulary = {
        "sha256": tokenizer.fingerprint(folder / "tokenizer"),
        "vocab_size": encoder.vocab_size,
        "eos_id": encoder.eos_id,
        "bos_id": encoder.bos_id,
    }
    inputs = [{"name": item.name, "sha256": item.sha256} for item in sources.inputs(config)]
    store.write_manifest(
        folder, {"name": config.name, "rules": config.rules(), "inputs": inputs, "tokenizer": vocabulary, "splits": splits}
    )


def split(documents: Sequence[Document], config: DataConfig) -> tuple[Sequence[Document], Sequence[Document]]:
    """Return the training and the held-out documents.

    Raises:
        DataError: If nothing would be left to train on.
    """
    rule = config.validation
    held_out = rule.last_documents if rule.last_documents is not None else max(1, round(len(documents) * (rule.ratio or 0)))
    if held_out >= len(documents):
        raise DataError(
            f"{config.path or config.corpus}: {len(documents)} documents, of which data.validation holds out {held_out}:"
            " nothing is left to train on. Hold out less, or bring more text."
        )
    return documents[:-held_out], documents[-held_out:]


def check_length(num_tokens: int, config: DataConfig) -> None:
    """Refuse a training split that does not fill one window.

    Raises:
        DataError: If it does not.
    """
    if num_tokens < config.seq_length + 1:
        raise DataError(
            f"{config.path or config.name}: {num_tokens} training tokens are less than one window of data.seq_length + 1 ="
            f" {config.seq_length + 1}. Shorten the window or bring more text."
        )


def _check_disk(config: DataConfig, folder: Path) -> None:
    """A full disk is cheap to notice before the work.

    Raises:
        DataError: If the store would not fit.
    """
    text_bytes = sum(item.path.stat().st_size for item in sources.inputs(config) if item.path)
    needed = _MIN_FREE_BYTES + 3 * text_bytes
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder}: {free >> 20} MiB free, about {needed >> 20} MiB wanted. Make room, or set data.directory to another disk."
        )


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold `path` alone. The system gives the lock back when its holder dies, however it dies."""
    with path.open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process is preparing this store; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str]) -> int:
    """Prepare the data of a configuration file; 2 is a mistake of the user's."""
    import ds_configs

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not arguments:
        print("usage: python -m data.prepare CONFIG [dotted.key=value ...]", file=sys.stderr)
        return 2
    try:
        loaded = ds_configs.load(arguments[0], arguments[1:])
        config = ds_configs.build(DataConfig, loaded.values.get("data", {}), "data", str(loaded.path))
        print(prepare(config))
    except (DataError, ds_configs.ConfigError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
