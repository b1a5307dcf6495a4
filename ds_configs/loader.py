"""Load the configuration of one run: read, inherit, override, and check everything that is not a section of ours.

What is inside `run`, `model`, `data` and `training` is checked by the packages that own those sections, through `build_section`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ds_configs.deepspeed_keys import TOP_LEVEL, Table
from ds_configs.deepspeed_params import OPTIMIZERS, SCHEDULERS, contradictions
from ds_configs.errors import ConfigError, Report, did_you_mean
from ds_configs.merge import read_with_parents
from ds_configs.overrides import apply_overrides
from ds_configs.reader import Entries, Origin, Traced, display_path, plain
from ds_configs.typed import FAILED, Refused, convert

SECTIONS = ("run", "model", "data", "training")
_TABLE = {**TOP_LEVEL, **dict.fromkeys(SECTIONS, dict[str, Any])}
_RUN_NAME = re.compile(r"\w[\w.+=-]*")  # it becomes a folder's name
_LONGEST_NAME_BYTES = 255  # of most file systems
_LAST_STEP = re.compile(r"(\[\d+\]|(^|\.)[^.\[]*)$")


@dataclass(frozen=True)
class LoadedConfig:
    """One run's configuration, merged and overridden.

    Attributes:
        path: The file it was loaded from.
        values: The merged keys, without "inherits" and "provenance"; `run.name` is always set.
        origins: Where each value was written, by dotted key; objects have entries of their own.
        problems: What is wrong with it, if it was read by `read`; nothing if by `load`.
    """

    path: Path
    values: dict[str, Any]
    origins: dict[str, Origin]
    problems: tuple[str, ...] = ()

    def where(self, key: str) -> str:
        """Where a message about a dotted key should point: "file:line", "command line", or this file if nobody set the key.

        The key may lie inside a list ("data.clean[1].rule"); then its list's place is meant.
        """
        while key and key not in self.origins:
            key = _LAST_STEP.sub("", key)
        return str(self.origins[key]) if key else display_path(self.path)


def load(path: str | Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Load a run's configuration with its parents, and apply overrides such as "optimizer.params.lr=3e-4".

    An override's value is read as JSON, else taken as a string; null removes the key.

    Raises:
        ConfigError: With all problems: files that cannot be read, parents that disagree, unknown keys, wrong types, no name of its own.
    """
    config = read(path, overrides)
    if config.problems:
        raise ConfigError(config.problems)
    return config


def read(path: str | Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Like `load`, for those who will find more problems in our sections and report all of them together.

    Raises:
        ConfigError: Only if a file cannot be read.
    """
    path = Path(path)
    merged, problems = read_with_parents(path)
    problems += apply_overrides(merged, overrides)
    here = Origin(display_path(path))
    run = merged.setdefault("run", Traced({}, here))
    if isinstance(run.value, dict):
        run.value.setdefault("name", Traced(path.stem, here))
    config = LoadedConfig(path, plain(merged), dict(_origins(merged)))
    return replace(config, problems=(*problems, *_check(config)))


def _origins(entries: Entries, prefix: str = "") -> Iterator[tuple[str, Origin]]:
    for key, entry in entries.items():
        yield prefix + key, entry.origin
        if isinstance(entry.value, dict):
            yield from _origins(entry.value, f"{prefix}{key}.")


def _check(config: LoadedConfig) -> list[str]:
    """Every problem in the merged values that can be seen without knowing our sections' fields."""
    problems: list[str] = []

    def report(key: str, problem: str) -> None:
        problems.append(f"{config.where(key)}: {problem}")

    convert(_TABLE, config.values, "", report)
    _check_by_type("optimizer", OPTIMIZERS, config.values, report)
    _check_by_type("scheduler", SCHEDULERS, config.values, report)
    run = config.values["run"]
    name = run["name"] if isinstance(run, dict) else None
    # Who builds the section says what is not a string.
    if isinstance(name, str) and not (_RUN_NAME.fullmatch(name) and len(name.encode("utf-8")) <= _LONGEST_NAME_BYTES):
        rule = f"letters, digits and _ . + = - only, the first a letter, digit or _, at most {_LONGEST_NAME_BYTES} bytes"
        report("run.name", f"run.name = {name!r}; it names a folder: {rule}.")
    return problems


def _check_by_type(section: str, tables: Mapping[str, Table | Refused], values: Mapping[str, Any], report: Report) -> None:
    """Check `<section>.params` by the table of `<section>.type`."""
    entry = values.get(section)
    if not isinstance(entry, dict) or not isinstance(entry.get("type", ""), str):
        return  # reported already
    usable = [name for name, table in tables.items() if not isinstance(table, Refused)]
    table = tables.get(entry.get("type", ""))
    if "type" not in entry:
        report(section, f"{section}.type is missing; it must be one of {', '.join(usable)}.")
    elif table is None:
        report(f"{section}.type", f'{section}.type = "{entry["type"]}" is not known. {did_you_mean(entry["type"], usable)}')
    elif isinstance(table, Refused):
        report(f"{section}.type", f'{section}.type = "{entry["type"]}" cannot be used: {table.reason}')
    elif isinstance(params := entry.get("params", {}), dict) and convert(table, params, f"{section}.params", report) is not FAILED:
        for key, problem in contradictions(section, entry):
            report(key, problem)
