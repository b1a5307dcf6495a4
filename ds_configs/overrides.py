"""Overrides from the command line: `dotted.key=value`."""

import json
from collections.abc import Sequence
from typing import Any

from ds_configs.deepspeed_keys import TOP_LEVEL
from ds_configs.errors import ConfigError
from ds_configs.merge import apply
from ds_configs.reader import Entries, KeyPath, Origin, keys_and_lines, refuse_constant, trace

COMMAND_LINE = "command line"
# Keys of data that change neither the store nor what a run reads from it.
DATA_WITHOUT_EFFECT = ("directory", "num_workers", "max_bad_ratio")


def apply_overrides(merged: Entries, overrides: Sequence[str]) -> list[str]:
    """Merge overrides into `merged`, the later over the earlier, and return the problems found."""
    problems = []
    keys = []
    for text in overrides:
        try:
            key, value = _parse(text)
        except ConfigError as error:
            problems.append(f"{COMMAND_LINE}: {error}")
            continue
        keys.append(key)
        patch: Any = value
        for name in reversed(key):
            patch = {name: patch}
        missing = apply(merged, trace(patch, lambda _key: Origin(COMMAND_LINE)))
        if value is None and not _is_deepspeed_key(key):
            problems += missing
    without_effect = [("data", name) for name in DATA_WITHOUT_EFFECT]
    changed = sorted({key[0] for key in keys if key[:2] not in without_effect} & {"model", "data"})
    if changed and ("run", "name") not in keys:
        problems.append(
            f"{COMMAND_LINE}: an override of {' and '.join(changed)} makes another run, "
            "which must not write into this one's folder. Add run.name=..."
        )
    return problems


def _parse(text: str) -> tuple[KeyPath, Any]:
    """Split one override into key and value.

    Raises:
        ConfigError: Says what is wrong with it.
    """
    dotted, equals, raw = text.partition("=")
    key = tuple(dotted.split("."))
    if text.startswith("-"):
        raise ConfigError(f'"{text}" is an option; there are none. Write dotted.key=value, for example training.steps=100.')
    if not equals or not all(key) or dotted.split() != [dotted]:
        raise ConfigError(f'"{text}" is not an override. Write dotted.key=value, for example training.steps=100.')
    if key[0] in ("inherits", "provenance"):
        raise ConfigError(f'"{key[0]}" cannot be overridden. Write a file of three lines that inherits what you need.')
    try:
        value = json.loads(raw, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return key, raw  # no JSON, so it is a string; NaN too
    keys = [inside for inside, _ in keys_and_lines(raw)]
    for index, inside in enumerate(keys):
        if inside in keys[:index]:
            raise ConfigError(f'"{text}" sets "{inside[-1]}" twice.')
    return key, value


def _is_deepspeed_key(key: KeyPath) -> bool:
    table: Any = TOP_LEVEL
    for name in key:
        if not isinstance(table, dict) or name not in table:
            return False
        table = table[name]
    return True
