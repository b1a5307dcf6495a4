"""Read one JSON file strictly: UTF-8, one object, no duplicate keys, and where each value was written.

Python's `json` says where a syntax error is but keeps the last of two equal keys and forgets all positions; both matter to the person
who has to find a mistake, so keys are located by a second, much simpler, pass over text already known to be JSON.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ds_configs.errors import ConfigError, nearest

KeyPath = tuple[str, ...]

SHIPPED = Path(__file__).resolve().parent
_DEEPEST = 100
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,\n]')


class Origin(NamedTuple):
    """Where a value was written: a file and, if known, a line; or the command line."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


class Traced(NamedTuple):
    """A value and its origin. An object's value is a dict of its keys' `Traced`; entries of a list have no origins of their own."""

    value: Any
    origin: Origin

    def plain(self) -> Any:
        """The value without origins."""
        return plain(self.value) if isinstance(self.value, dict) else self.value


Entries = dict[str, Traced]


def trace(values: Mapping[str, Any], origin: Callable[[KeyPath], Origin], path: KeyPath = ()) -> Entries:
    """An object's values with their origins, which are asked for by path.

    Raises:
        ConfigError: If objects lie in each other deeper than Python can go through them.
    """
    if len(path) > _DEEPEST:
        raise ConfigError(f"{origin(path)}: nested too deeply to be a configuration.")
    entries = {}
    for key, value in values.items():
        here = (*path, key)
        entries[key] = Traced(trace(value, origin, here) if isinstance(value, dict) else value, origin(here))
    return entries


def plain(entries: Entries) -> dict[str, Any]:
    """The values that `trace` was given."""
    return {key: entry.plain() for key, entry in entries.items()}


def display_path(path: Path) -> str:
    """The path as messages name it: relative to the current folder where it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def read(path: Path) -> Entries:
    """Read a configuration file.

    Raises:
        ConfigError: If there is no such file, or it is not UTF-8, not JSON, not an object, or says one key twice.
    """
    where = display_path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{where}: no such file. {_files_like(path)}") from None
    except IsADirectoryError:
        written = path / "config.json"
        hint = f"Did you mean {display_path(written)}?" if written.is_file() else _holds(path)
        raise ConfigError(f"{where}: is a folder, not a configuration file. {hint}") from None
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror}). Check the path and its permissions.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: is not UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x}). Save it as UTF-8.") from None
    return _parse(text, where)


def _parse(text: str, where: str) -> Entries:
    try:
        values = json.loads(text, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}.{_hint(text, error.pos)}") from None
    except ValueError as error:  # also an integer of more digits than Python converts
        raise ConfigError(f"{where}: not readable: {error}.") from None
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply to be a configuration.") from None
    if not isinstance(values, dict):
        raise ConfigError(f'{where}: holds {type(values).__name__} at the top; a configuration is an object: {{"inherits": ...}}.')

    lines: dict[KeyPath, int] = {}
    problems = []
    twice: set[KeyPath] = set()
    for key, line in keys_and_lines(text):
        if key in lines:
            twice.add(key)
            if any(key[:length] in twice for length in range(1, len(key))):
                continue  # inside an object that stands twice, which is the mistake to report
            problems.append(f'{where}:{line}: "{".".join(key)}" is set twice (first on line {lines[key]}). Remove one of them.')
        else:
            lines[key] = line
    if problems:
        raise ConfigError(problems)
    return trace(values, lambda key: Origin(where, lines[key]))


def refuse_constant(name: str) -> NoReturn:
    """For NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(f"{name} is no JSON number; write a finite one")


def _hint(text: str, position: int) -> str:
    """What commonly causes a syntax error at this position, or nothing."""
    before, after = text[:position].rstrip(), text[position:].lstrip()
    if after[:1] in ("}", "]") and before[-1:] == ",":
        return " Remove the comma before the closing bracket."
    if before[-1:] == "," and after[:1] != '"':
        return " A key stands in double quotes; after the last entry there is no comma."
    if after[:2] == "//" or after[:1] in ("#", "/"):
        return ' JSON has no comments; use "run": {"description": ...}.'
    if after[:1] == "'":
        return " JSON uses double quotes."
    return ""


def keys_and_lines(text: str) -> Iterator[tuple[KeyPath, int]]:
    """Yield (path, line) of every object key in valid JSON. A list's index is part of the path, so equal keys of two entries differ."""
    line = 1
    path: list[str] = []  # one entry for each open object or list: the key or index we are at
    is_list: list[bool] = []
    string = ""
    for match in _TOKENS.finditer(text):
        token = match.group()
        if token == "\n":
            line += 1
        elif token in "{[":
            is_list.append(token == "[")
            path.append("0" if token == "[" else "")
        elif token in "}]":
            is_list.pop()
            path.pop()
        elif token == ",":
            path[-1] = str(int(path[-1]) + 1) if is_list[-1] else ""
        elif token == ":":
            path[-1] = json.loads(string)
            yield tuple(path), line
        else:
            string = token


def _files_like(path: Path) -> str:
    """The file that was probably meant, where a missing one was looked for or among the shipped ones; else the names that there are."""
    folder, patterns = path.parent, ("*/*.json", "*.json")
    stems = {file.stem: file for place in (SHIPPED, folder) for pattern in patterns for file in sorted(place.glob(pattern))}
    guess = nearest(path.name.removesuffix(".json"), stems)
    if guess is not None:
        return f"Did you mean {display_path(stems[guess])}?"
    return ("" if folder.is_dir() else f"There is no folder {display_path(folder)}. ") + _holds(folder)


def _holds(folder: Path) -> str:
    """The configurations in a folder; the shipped ones where it has none."""
    files = sorted(folder.glob("*.json")) or sorted(SHIPPED.glob("*.json"))
    place = files[0].parent
    name = place.resolve() if str(place) in (".", "..") else display_path(place)
    return f"{name} holds: {', '.join(file.name for file in files)}."
