"""Read a configuration file together with everything it inherits."""

from pathlib import Path

from ds_configs.errors import ConfigError
from ds_configs.merge import Origin, TracedValues, apply, join, nothing_to_remove
from ds_configs.reader import Document, display_path, read

_NOT_MERGED = ("inherits", "provenance")


def read_with_parents(path: Path) -> tuple[TracedValues, list[str]]:
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

    def merged(self, path: Path, descendants: tuple[Path, ...], said_by: str = "") -> TracedValues:
        try:
            document = read(path)
        except ConfigError as error:
            self.unreadable += [f"{said_by}{problem}" for problem in error.problems]
            return TracedValues()
        where = display_path(path)
        patch = {key: value for key, value in document.values.items() if key not in _NOT_MERGED}
        parents = [self._parent(parent, where, (*descendants, path)) for parent in self._inherited(path, document)]
        joined, disagreements = join(parents, patch)
        self.problems += [f"{where}: its parents disagree on {found}. Set it in {where}." for found in disagreements]
        missing = apply(joined, patch, lambda key: Origin(where, document.lines[key]))
        if parents:
            self.problems += [f"{where}:{document.lines[key]}: {nothing_to_remove(key, joined.values)}" for key in missing]
        return joined

    def _inherited(self, path: Path, document: Document) -> list[Path]:
        names = document.values.get("inherits", [])
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return [path.parent / name for name in names]
        line = document.lines[("inherits",)]
        self.unreadable.append(f'{display_path(path)}:{line}: inherits must be a list of files, such as ["quickstart.json"].')
        return []

    def _parent(self, path: Path, child: str, descendants: tuple[Path, ...]) -> TracedValues:
        resolved = [descendant.resolve() for descendant in descendants]
        if path.resolve() in resolved:
            cycle = [display_path(file) for file in (*descendants[resolved.index(path.resolve()) :], path)]
            self.unreadable.append(f"{child}: inherits itself: {' -> '.join(cycle)}. Break the cycle.")
            return TracedValues()
        merged = self.merged(path, descendants, "" if path.exists() else f"{child}: inherits ")
        run = merged.values.get("run")
        if isinstance(run, dict) and "name" in run:
            # A name is a folder: inherited, a run would write over its parent's.
            apply(merged, {"run": {"name": None}}, lambda _key: Origin(child))
        return merged
