"""Hashes of values and of files; the latter are remembered: 200 GB are not read again to find out that they have not changed."""

from pathlib import Path
from typing import Any

from ds_configs.files import object_or_nothing, sha256_of, write_json


class FileHashes:
    """SHA-256 of files; one whose size and times are known is not read.

    The time of the last change of status counts too: unlike that of the content, no program can set it back.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known: dict[str, list[Any]] = object_or_nothing(memory)
        self._changed = False

    def of(self, path: Path) -> str:
        """Return the hash of a file."""
        status = path.stat()
        name = str(path.resolve())
        known = self._known.get(name)
        state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        if known and known[:-1] == state:
            return str(known[-1])
        digest = sha256_of(path)
        self._known[name] = [*state, digest]
        self._changed = True
        return digest

    def save(self) -> None:
        """Write down what was learnt."""
        if self._changed:
            write_json(self._memory, self._known)
