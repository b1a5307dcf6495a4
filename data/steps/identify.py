"""Work out from the raw files which store a `data` section means. Whoever prepares a store does so; ranks never do."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.config import DataConfig
from data.corpora import sources
from data.corpora.named import CORPORA
from data.documents import DataError
from data.reading.compression import endings
from data.reading.records import printable
from data.source_config import HUB
from data.store.identity import Identity, spell_out
from data.tokenizers import adoption
from ds_configs.atomic_files import object_or_nothing, sha256_of, write_json

logger = logging.getLogger(__name__)
_SAY_SECONDS = 20.0


class FileHashes:
    """SHA-256 of files; one whose size and times are known is not read: 200 GB are not hashed again to find that nothing has changed.

    The time of the last change of status counts too: unlike that of the content, no program can set it back.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known: dict[str, list[Any]] = object_or_nothing(memory)
        self._changed = False
        self._said = time.monotonic()

    def of(self, path: Path) -> str:
        """Return the hash of a file."""
        status = path.stat()
        name = printable(str(path.resolve()))
        known = self._known.get(name)
        state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        if known and known[:-1] == state:
            return str(known[-1])
        digest = sha256_of(path)
        self._known[name] = [*state, digest]
        self._changed = True
        if time.monotonic() - self._said > _SAY_SECONDS:
            self._said = time.monotonic()
            logger.info("the files are being hashed, to know them again; the last one was %s", name)
            self.save()
        return digest

    def save(self) -> None:
        """Write down what was learnt, if the folder is there and may be written."""
        if self._changed and os.access(self._memory.parent, os.W_OK):
            write_json(self._memory, self._known)
            self._changed = False


def identify(config: DataConfig, hashes: FileHashes, before: Mapping[str, Any] | None = None) -> Identity:
    """Work out the identity of the store of `config` from the raw files.

    Args:
        config: The data section.
        hashes: A file that it knows and that has not changed is not read.
        before: Manifest of the store that this very section was prepared as. What of its text is not on this machine any more, or
            would have to be asked of a hub, is taken as it was then, and said.

    Raises:
        DataError: If a path does not exist.
    """
    inputs: list[dict[str, Any]] = []
    if config.store is not None:
        pair = [Path(f"{config.store}{ending}") for ending in (".bin", ".idx")]
        if missing := [str(path) for path in pair if not path.is_file()]:
            said = f'data.store = "{config.store}": there is no {" and no ".join(missing)}.'
            raise DataError(f"{said} Give the common beginning of a .bin/.idx pair.")
        inputs = _files(0, pair, hashes)
    for index, source in enumerate(config.all_sources):
        kept = [item for item in before["inputs"] if item["source"] == index] if before else []
        if kept and (reason := _cannot_be_looked_at(source.paths)):
            logger.warning("%s %s: the store that was made of it is used as it is", ", ".join(source.paths), reason)
            inputs += kept
        elif source.path is None:
            known = CORPORA[source.corpus or ""]
            inputs.append({"source": index, "name": known.origin, "type": "corpus", "sha256": known.sha256})
        else:
            inputs += _files(index, sources.own_files(source), hashes)
    return Identity(spell_out(config), inputs, _tokenizer_files(config.tokenizer.path, hashes, before))


def _cannot_be_looked_at(paths: Sequence[str]) -> str | None:
    if any(path.startswith(HUB) for path in paths):
        return "is not asked for again"
    return "is not here any more" if paths and not any(_exists(path) for path in paths) else None


def _exists(path: str) -> bool:
    # Of a pattern, the part in front of the first wildcard: an emptied folder is a change, a folder that is gone is not.
    plain = path[: min((path.index(mark) for mark in "*?[" if mark in path), default=len(path))]
    return os.path.lexists(path) or (plain != path and os.path.isdir(os.path.dirname(plain) or "."))


def _tokenizer_files(path: str | None, hashes: FileHashes, before: Mapping[str, Any] | None) -> list[dict[str, str]]:
    if path is None:
        return []
    if before and not os.path.lexists(path):
        logger.warning("%s is not here any more: the store keeps the tokenizer that was made of it", path)
        kept: list[dict[str, str]] = before["tokenizer_inputs"]
        return kept
    return [{"name": file.name, "sha256": hashes.of(file)} for file in adoption.find_files(path)]


def _files(source: int, paths: Sequence[Path], hashes: FileHashes) -> list[dict[str, Any]]:
    """Each with its name below the folder that holds them all."""
    top = os.path.commonpath([path.absolute().parent for path in paths])
    names = [printable(path.absolute().relative_to(top).as_posix()) for path in paths]
    return [
        {"source": source, "name": name, "type": "".join(endings(path)), "sha256": hashes.of(path)}
        for name, path in zip(names, paths, strict=True)
    ]
