"""Merge configurations: a file over its parents, and overrides over the file.

Objects merge key by key, everything else replaces, null removes (JSON Merge Patch, RFC 7396). Parents are equal: where they
disagree the child has to decide, so the order in which it names them never matters.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ds_configs.errors import did_you_mean
from ds_configs.reader import KeyPath


class Origin(NamedTuple):
    """Where a value was written: a file and, if known, a line; or the command line."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass
class TracedValues:
    """Values, and where each of them was written. Every key of an object has an origin, the objects' own keys included."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, Origin] = field(default_factory=dict)

    def forget(self, key: KeyPath) -> None:
        """Drop the origins of a key and of everything below it."""
        for known in [known for known in self.origins if known[: len(key)] == key]:
            del self.origins[known]


def apply(base: TracedValues, patch: Mapping[str, Any], origin: Callable[[KeyPath], Origin], path: KeyPath = ()) -> list[KeyPath]:
    """Merge `patch` into the object that `base` has at `path`, in place.

    Returns:
        The keys that `patch` removes (sets to null) although `base` does not have them.
    """
    target = base.values
    for name in path:
        target = target[name]
    missing = []
    for key, value in patch.items():
        here = (*path, key)
        if value is None:
            if key not in target:
                missing.append(here)
            target.pop(key, None)
            base.forget(here)
        elif isinstance(value, dict):
            if not isinstance(target.get(key), dict):
                target[key] = {}
                base.forget(here)
                base.origins[here] = origin(here)
            missing += apply(base, value, origin, here)
        else:
            base.forget(here)
            target[key] = copy.deepcopy(value)
            base.origins[here] = origin(here)
    return missing


def nothing_to_remove(key: KeyPath, values: Mapping[str, Any]) -> str:
    """What to say of a null for a key that `values` do not have, after who wrote it."""
    siblings: Any = values
    for name in key[:-1]:
        siblings = siblings.get(name) if isinstance(siblings, Mapping) else None
    guess = did_you_mean(key[-1], siblings if isinstance(siblings, Mapping) else ())
    return f'null removes "{".".join(key)}", but there is none to remove. {guess}'


def join(parents: list[TracedValues], child: Mapping[str, Any]) -> tuple[TracedValues, list[str]]:
    """Combine parents that must agree, except where `child` sets or removes the key itself.

    Returns:
        What they say together, and on which keys they disagree: each key with two values and their origins.
    """
    joined = TracedValues()
    disagreements = [found for parent in parents for found in _join(joined, joined.values, parent, parent.values, ())]
    return joined, [text for key, text in disagreements if not _decides(child, key)]


def _join(
    joined: TracedValues, target: dict[str, Any], parent: TracedValues, values: Mapping[str, Any], path: KeyPath
) -> Iterator[tuple[KeyPath, str]]:
    for key, value in values.items():
        here = (*path, key)
        if key not in target:
            target[key] = copy.deepcopy(value)
            joined.origins.update({known: origin for known, origin in parent.origins.items() if known[: len(here)] == here})
        elif isinstance(value, dict) and isinstance(target[key], dict):
            yield from _join(joined, target[key], parent, value, here)
        elif not _same(target[key], value):
            yield here, f'"{".".join(here)}": {target[key]!r} ({joined.origins[here]}), {value!r} ({parent.origins[here]})'


def _same(first: Any, second: Any) -> bool:
    """Equal as JSON: unlike in Python, true is not 1."""
    return first == second and isinstance(first, bool) == isinstance(second, bool)


def _decides(child: Mapping[str, Any], key: KeyPath) -> bool:
    """Whether `child` sets this key, or removes or replaces an object that holds it."""
    values: Any = child
    for name in key:
        if not isinstance(values, dict):
            return True
        if name not in values:
            return False
        values = values[name]
    return not isinstance(values, dict)
