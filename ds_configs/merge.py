"""Read a file with everything it inherits, and merge: a file over its parents, overrides over the file.

Objects merge key by key, everything else replaces, null removes (JSON Merge Patch, RFC 7396). Parents are equal: where they
disagree the child has to decide, so the order in which it names them never matters.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ds_configs.errors import ConfigError, did_you_mean, is_text
from ds_configs.reader import Entries, KeyPath, Traced, display_path, read


def read_with_parents(path: Path) -> tuple[Entries, list[str]]:
    """Return a run's merged values and the problems that did not prevent reading it.

    Raises:
        ConfigError: If a file cannot be read or is a part, which makes every further check meaningless.
    """
    reading = _Reading()
    merged = reading.merged(path, ())
    if reading.unreadable:
        raise ConfigError(reading.unreadable)
    if "parts" in (folder.name for folder in path.resolve().parents[:2]):
        # Alone: that it lacks most of a run is no mistake of its own.
        raise ConfigError(f"{display_path(path)}: is a part, which runs inherit, and cannot be run. Name a file outside parts/.")
    return merged, reading.problems


class _Reading:
    """Collects problems over one walk through a file's ancestors."""

    def __init__(self) -> None:
        self.unreadable: list[str] = []
        self.problems: list[str] = []

    def merged(self, path: Path, descendants: tuple[Path, ...], said_by: str = "") -> Entries:
        try:
            own = read(path)
        except ConfigError as error:
            self.unreadable += [f"{said_by}{problem}" for problem in error.problems]
            return {}
        where = display_path(path)
        own.pop("provenance", None)
        parents = [self._parent(parent, where, (*descendants, path)) for parent in self._inherited(path, own.pop("inherits", None))]
        joined: Entries = {}
        for parent in parents:
            self.problems += [f"{where}: its parents disagree on {key}. Set it in {where}." for key in join(joined, parent, own)]
        missing = apply(joined, own)
        if parents:
            self.problems += missing
        return joined

    def _inherited(self, path: Path, inherits: Traced | None) -> list[Path]:
        if inherits is None:
            return []
        names = inherits.value
        if isinstance(names, list) and all(isinstance(name, str) and is_text(name) for name in names):
            return [path.parent / name for name in names]
        self.unreadable.append(f'{inherits.origin}: inherits must be a list of files, such as ["quickstart.json"].')
        return []

    def _parent(self, path: Path, child: str, descendants: tuple[Path, ...]) -> Entries:
        resolved = [descendant.resolve() for descendant in descendants]
        if path.resolve() in resolved:
            cycle = [display_path(file) for file in (*descendants[resolved.index(path.resolve()) :], path)]
            self.unreadable.append(f"{child}: inherits itself: {' -> '.join(cycle)}. Break the cycle.")
            return {}
        merged = self.merged(path, descendants, "" if path.exists() else f"{child}: inherits ")
        if "run" in merged and isinstance(merged["run"].value, dict):
            merged["run"].value.pop("name", None)  # A name is a folder: inherited, a run would write over its parent's.
        return merged


def apply(base: Entries, patch: Entries, path: KeyPath = ()) -> list[str]:
    """Merge `patch` into `base`, which is the object at `path`, in place.

    Returns:
        What to say of each key that `patch` removes (sets to null) although `base` does not have it.
    """
    missing = []
    for key, entry in patch.items():
        here = (*path, key)
        if entry.value is None and key not in base:
            guess = did_you_mean(key, base)
            missing.append(f'{entry.origin}: null removes "{".".join(here)}", but there is none to remove. {guess}')
        elif entry.value is None:
            del base[key]
        elif isinstance(entry.value, dict):
            if key not in base or not isinstance(base[key].value, dict):
                base[key] = Traced({}, entry.origin)
            missing += apply(base[key].value, entry.value, here)
        else:
            base[key] = entry
    return missing


def join(joined: Entries, parent: Entries, child: Entries, path: KeyPath = ()) -> Iterator[str]:
    """Add to `joined` what only `parent` has. Yield where both say something else, with values and origins, unless `child` decides it."""
    for key, entry in parent.items():
        known, decision = joined.setdefault(key, entry), child.get(key)
        if known is entry or (decision is not None and not isinstance(decision.value, dict)):
            continue
        here = (*path, key)
        if isinstance(known.value, dict) and isinstance(entry.value, dict):
            yield from join(known.value, entry.value, decision.value if decision else {}, here)
        elif not _same(known.plain(), entry.plain()):
            yield f'"{".".join(here)}": {known.plain()!r} ({known.origin}), {entry.plain()!r} ({entry.origin})'


def _same(first: Any, second: Any) -> bool:
    """Equal as JSON: unlike in Python, true is not 1."""
    return first == second and isinstance(first, bool) == isinstance(second, bool)
