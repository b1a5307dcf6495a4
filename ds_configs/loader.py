"""Load the configuration of one run: read, inherit, override, and check everything that is not a section of ours.

What is inside `run`, `model`, `data` and `training` is checked by the packages that own those sections, through `build`.
"""

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ds_configs.deepspeed_keys import TOP_LEVEL
from ds_configs.deepspeed_params import OPTIMIZERS, SCHEDULERS, contradictions
from ds_configs.errors import ConfigError, Report, did_you_mean
from ds_configs.merge import Layer, Origin, apply
from ds_configs.overrides import apply_overrides
from ds_configs.parents import read_with_parents
from ds_configs.reader import shown
from ds_configs.typed import FAILED, convert

SECTIONS = ("run", "model", "data", "training")
_TABLE = {**TOP_LEVEL, **dict.fromkeys(SECTIONS, dict[str, Any])}
_RUN_NAME = re.compile(r"\w[\w.+=-]*")  # it becomes a folder's name
_LAST_STEP = re.compile(r"(\[\d+\]|(^|\.)[^.\[]*)$")


@dataclass(frozen=True)
class Config:
    """One run's configuration, merged and overridden.

    Attributes:
        path: The file it was loaded from.
        values: The merged keys, without "inherits" and "provenance"; `run.name` is always set.
        sources: The file each value is from, or "command line", by dotted key; objects have entries of their own.
        overrides: The overrides as they were given.
        lines: The line of each value in its file, by dotted key.
        problems: What is wrong with it, if it was read by `read`; nothing if by `load`.
    """

    path: Path
    values: dict[str, Any]
    sources: dict[str, str]
    overrides: tuple[str, ...]
    lines: dict[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def where(self, key: str) -> str:
        """Where a message about a dotted key should point: "file:line", "command line", or this file if nobody set the key.

        The key may lie inside a list ("data.clean[1].rule"); then its list's place is meant.
        """
        known = _closest(key, self.sources)
        return str(Origin(self.sources[known], self.lines.get(known))) if known else shown(self.path)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Load a run's configuration with its parents, and apply overrides such as "optimizer.params.lr=3e-4".

    An override's value is read as JSON, else taken as a string; null removes the key.

    Raises:
        ConfigError: With all problems: files that cannot be read, parents that disagree, unknown keys, wrong types, no name of its own.
    """
    config = read(path, overrides)
    if config.problems:
        raise ConfigError(config.problems)
    return config


def read(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Like `load`, for those who will find more problems in our sections and report all of them together.

    Raises:
        ConfigError: Only if a file cannot be read, or nothing sensible can be said of its values.
    """
    path = Path(path)
    layer, problems = read_with_parents(path)
    if problems and not layer.values:
        raise ConfigError(problems)
    problems += apply_overrides(layer, overrides)
    run = layer.values.setdefault("run", {})
    if isinstance(run, dict) and "name" not in run:
        apply(layer, {"run": {"name": path.stem}}, lambda _key: Origin(shown(path)))
    problems += _check(layer)
    origins = {".".join(key): origin for key, origin in layer.origins.items()}
    sources = {key: origin.file for key, origin in origins.items()}
    lines = {key: origin.line for key, origin in origins.items() if origin.line is not None}
    return Config(path, layer.values, sources, tuple(overrides), lines, tuple(problems))


def _closest(key: str, known: Container[str]) -> str:
    """A dotted key if it is known, else the nearest known one above it, else ""."""
    while key and key not in known:
        key = _LAST_STEP.sub("", key)
    return key


def _check(layer: Layer) -> list[str]:
    """Every problem in the merged values that can be seen without knowing our sections' fields."""
    problems: list[str] = []
    origins = {".".join(key): origin for key, origin in layer.origins.items()}

    def report(key: str, problem: str) -> None:
        problems.append(f"{origins[_closest(key, origins)]}: {problem}")

    convert(_TABLE, layer.values, "", report)
    _check_by_type("optimizer", OPTIMIZERS, layer.values, report)
    _check_by_type("scheduler", SCHEDULERS, layer.values, report)
    run = layer.values["run"]
    # Who builds the section says what is not a string.
    if isinstance(run, dict) and isinstance(run["name"], str) and not _RUN_NAME.fullmatch(run["name"]):
        report("run.name", f"run.name = {run['name']!r}; it names a folder: letters, digits and _ . + = - only, a letter or digit first.")
    return problems


def _check_by_type(section: str, tables: Mapping[str, Any], values: Mapping[str, Any], report: Report) -> None:
    """Check `<section>.params` by the table of `<section>.type`."""
    entry = values.get(section)
    if not isinstance(entry, dict):
        return
    if "type" not in entry:
        report(section, f"{section}.type is missing; it must be one of {', '.join(tables)}.")
    elif isinstance(entry["type"], str) and entry["type"] not in tables:
        report(f"{section}.type", f'{section}.type = "{entry["type"]}" is not known. {did_you_mean(entry["type"], tables)}')
    elif isinstance(entry["type"], str) and isinstance(entry.get("params"), dict):
        found = convert(tables[entry["type"]], entry["params"], f"{section}.params", report)
        for key, problem in contradictions(section, entry) if found is not FAILED else ():
            report(key, problem)
