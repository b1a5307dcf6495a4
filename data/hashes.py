"""Hashes of files, remembered: 200 GB are not read again to find out that they have not changed."""

import json
from pathlib import Path

from data.fetch import sha256_of
from data.tasks import write_json


class FileHashes:
    """SHA-256 of files; one whose size and time of change are known is not read."""

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        try:
            self._known: dict[str, list[int | str]] = json.loads(memory.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}
        self._changed = False

    def of(self, path: Path) -> str:
        """Return the hash of a file."""
        status = path.stat()
        name = str(path.resolve())
        known = self._known.get(name)
        if known and known[:2] == [status.st_size, status.st_mtime_ns]:
            return str(known[2])
        digest = sha256_of(path)
        self._known[name] = [status.st_size, status.st_mtime_ns, digest]
        self._changed = True
        return digest

    def save(self) -> None:
        """Write down what was learnt."""
        if self._changed:
            write_json(self._memory, self._known)
