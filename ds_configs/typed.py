"""Check JSON values against Python types: `build_section` makes a dataclass of a section, `convert` checks one value.

Beside the annotations of dataclasses, `convert` understands tables (a dict of key -> type, every key optional), which describe
sections that are passed on as they are, and the markers `Bounded` and `Refused` inside them; a field has its bounds in an
`Annotated` type. A field whose type does not say enough has a function in its metadata under "check": (converted value, dotted
key, report) -> the value, or FAILED.
"""

import contextlib
import dataclasses
import json
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ds_configs.errors import ConfigError, FieldError, Report, did_you_mean, is_text, nearest, shown

T = TypeVar("T")

FAILED = object()  # what `convert` returns once it has reported a problem


@dataclass(frozen=True)
class Bounded:
    """A number of this type from `minimum` to `maximum`. The last bound that is given is itself left out if `exclusive`."""

    type: type
    minimum: float
    maximum: float = math.inf
    exclusive: bool = False

    def __str__(self) -> str:
        if self.maximum < math.inf:
            return f"{describe(self.type)} from {self.minimum:g} to {'below ' if self.exclusive else ''}{self.maximum:g}"
        return f"{describe(self.type)} {f'above {self.minimum:g}' if self.exclusive else f'of {self.minimum:g} or more'}"

    def holds(self, number: float) -> bool:
        """Whether the number is inside the bounds."""
        edge = self.maximum if self.maximum < math.inf else self.minimum
        return self.minimum <= number <= self.maximum and not (self.exclusive and number == edge)


Count = Annotated[int, Bounded(int, 1)]
Share = Annotated[float, Bounded(float, 0, 1)]


@dataclass(frozen=True)
class Refused:
    """A key that exists elsewhere but must not be set here, but to a `harmless` value; `reason` says why and what to do."""

    reason: str
    harmless: Any = None


def build_section(cls: type[T], section: Mapping[str, Any], name: str, where: str | Callable[[str], str]) -> T:
    """Make a dataclass from a section of a configuration.

    Args:
        cls: A dataclass; its annotations say what each key must hold, its defaults which keys may be left out.
        section: The section's keys and values.
        name: The section's dotted name, for messages: "model".
        where: The file to name in messages, or a function from a dotted key to it (`LoadedConfig.where`); a missing key asks for "".

    Raises:
        ConfigError: With every unknown key, missing key, wrong type, and whatever `__post_init__` raises as ValueError.
    """
    problems: list[str] = []
    locate = where if callable(where) else lambda _key: where

    def report(key: str, problem: str) -> None:
        problems.append(f"{locate(key)}: {problem}")

    result = convert(cls, section, name, report)
    if problems:
        raise ConfigError(problems)
    assert isinstance(result, cls), f"convert() gave {type(result)} for {cls} without a problem"
    return result


def convert(wanted: Any, value: Any, name: str, report: Report) -> Any:
    """Return `value` as the type `wanted` describes (lists become tuples where it says so), or FAILED after a report."""
    origin = get_origin(wanted)
    if wanted is Any or wanted is object:
        return value
    if origin is Annotated:
        return convert(get_args(wanted)[1], value, name, report)
    if isinstance(wanted, Refused):
        if type(value) is type(wanted.harmless) and value == wanted.harmless:
            return value
        report(name, f'"{name}" cannot be set: {wanted.reason}')
        return FAILED
    if origin in (Union, types.UnionType):
        return _union(get_args(wanted), value, name, report)
    if origin in (list, tuple):
        return _sequence(wanted, value, name, report)
    if isinstance(wanted, dict) or origin in (dict, Mapping) or (isinstance(wanted, type) and dataclasses.is_dataclass(wanted)):
        return _object(wanted, value, name, report)
    return _scalar(wanted, value, name, report)


def describe(wanted: Any) -> str:
    """The type in words: "an integer", "a list of strings"."""
    names = {int: "an integer", float: "a number", str: "a string", bool: "true or false", type(None): "null", Any: "anything"}
    origin, args = get_origin(wanted), get_args(wanted)
    if isinstance(wanted, Bounded) or origin is Annotated:
        return str(args[1] if args else wanted)
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(json.dumps(choice) for choice in args)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(arm) for arm in args if arm is not type(None))
    if origin is tuple and args and args[-1] is not Ellipsis:
        return "a list of " + ", then ".join(describe(arg) for arg in args)
    if origin in (list, tuple):
        return f"a list, each entry {describe(args[0])}"
    if isinstance(wanted, type) and wanted in names:
        return names[wanted]
    return "an object"


def _got(value: Any) -> str:
    """A value with its type where that is not plain to see."""
    text = shown(value)
    kinds = {bool: "is a truth value", str: "is a string", dict: "is an object", list: "is a list", float: "is written with a fraction"}
    return f"{text}, which {kinds[type(value)]}" if type(value) in kinds else text


def _mismatch(name: str, value: Any, wanted: Any, report: Report) -> Any:
    arms = get_args(wanted) if get_origin(wanted) in (Union, types.UnionType) else (wanted,)
    # Of a fraction it is not known how it was written.
    is_bare = type(value) is int and str in arms and "[" not in name
    # With the space it also passes through a remote shell.
    quotes = f""" Put it in quotes; on a command line: '{name}= "{shown(value)}"'.""" if is_bare else ""
    report(name, f"{name} = {_got(value)}; it must be {describe(wanted)}.{quotes}")
    return FAILED


def _scalar(wanted: Any, value: Any, name: str, report: Report) -> Any:
    if get_origin(wanted) is Literal:
        return _literal(wanted, value, name, report)
    if isinstance(wanted, Bounded):
        return _bounded(wanted, value, name, report)
    if wanted is float and type(value) in (int, float):
        with contextlib.suppress(OverflowError):  # An integer of hundreds of digits.
            if math.isfinite(value):
                return float(value)
        report(name, f"{name} is too large for a number. Write a finite one.")
        return FAILED
    if wanted is int and type(value) is int and abs(value) > 1 << 64:
        report(name, f"{name} is too large for an integer. Write a smaller one.")
        return FAILED
    if wanted is str and type(value) is str and not is_text(value):
        what = "it has bytes that are not UTF-8, half a character or a zero byte. Write it anew, or rename the file"
        report(name, f"{name} = {value!a} is no text: {what}.")
        return FAILED
    return value if type(value) is wanted else _mismatch(name, value, wanted, report)


def _literal(wanted: Any, value: Any, name: str, report: Report) -> Any:
    choices = get_args(wanted)
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return value
    guess = nearest(value, [choice for choice in choices if isinstance(choice, str)]) if isinstance(value, str) else None
    hint = f' Did you mean "{guess}"?' if guess else ""
    report(name, f"{name} = {json.dumps(value, ensure_ascii=False)}; it must be {describe(wanted)}.{hint}")
    return FAILED


def _bounded(wanted: Bounded, value: Any, name: str, report: Report) -> Any:
    number = _scalar(wanted.type, value, name, report)
    if number is FAILED or wanted.holds(number):
        return number
    report(name, f"{name} = {json.dumps(value)}; it must be {wanted}.")
    return FAILED


def _union(arms: tuple[Any, ...], value: Any, name: str, report: Report) -> Any:
    """The first arm that fits. If none does, the arm for values of this type says what is wrong inside."""
    if value is None and type(None) in arms:
        return None
    first, *others = (arm for arm in arms if arm is not type(None))
    if not others:
        return convert(first, value, name, report)
    for arm in arms:
        reports: list[tuple[str, str]] = []
        result = convert(arm, value, name, lambda key, problem, into=reports: into.append((key, problem)))  # type: ignore[misc]
        if not reports:
            return result
    for arm in arms:
        if (
            (isinstance(value, dict) and describe(arm) == "an object")
            or (isinstance(value, list) and get_origin(arm) in (list, tuple))
            or (isinstance(value, str) and arm is str)
        ):
            return convert(arm, value, name, report)
    return _mismatch(name, value, Union[arms], report)  # noqa: UP007 - built from a tuple


def _sequence(wanted: Any, value: Any, name: str, report: Report) -> Any:
    origin, args = get_origin(wanted), get_args(wanted)
    if not isinstance(value, list | tuple):
        return _mismatch(name, value, wanted, report)
    fixed = origin is tuple and args[-1] is not Ellipsis
    if fixed and len(args) != len(value):
        report(name, f"{name} = {json.dumps(value, ensure_ascii=False)} has {len(value)} entries; it must have {len(args)}.")
        return FAILED
    kinds = args if fixed else (args[0],) * len(value)
    entries = [convert(kind, entry, f"{name}[{index}]", report) for index, (kind, entry) in enumerate(zip(kinds, value, strict=True))]
    return FAILED if FAILED in entries else origin(entries)


def _object(wanted: Any, value: Any, name: str, report: Report) -> Any:
    """What a table, a dataclass, or a mapping whose values are all of one type wants."""
    if not isinstance(value, Mapping):
        return _mismatch(name, value, wanted, report)
    if dataclasses.is_dataclass(wanted):
        return _dataclass(wanted, value, name, report)
    kinds = wanted if isinstance(wanted, dict) else dict.fromkeys(value, get_args(wanted)[1])
    entries = _entries(kinds, value, name, report)
    return FAILED if FAILED in entries.values() else entries


def _entries(kinds: Mapping[str, Any], value: Mapping[str, Any], name: str, report: Report) -> dict[str, Any]:
    """Convert each entry of an object whose keys may be `kinds`."""
    entries = {}
    for key, entry in value.items():
        dotted = f"{name}.{key}" if name else key
        if key in kinds:
            entries[key] = convert(kinds[key], entry, dotted, report)
        else:
            allowed = [known for known, kind in kinds.items() if not isinstance(kind, Refused)]
            report(dotted, f'unknown key "{dotted}". {did_you_mean(key, allowed)}')
            entries[key] = FAILED
    return entries


def _dataclass(cls: Any, value: Mapping[str, Any], name: str, report: Report) -> Any:
    hints = get_type_hints(cls, include_extras=True)
    fields = [entry for entry in dataclasses.fields(cls) if entry.init]
    arguments = _entries({entry.name: hints[entry.name] for entry in fields}, value, name, report)
    for entry in fields:
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if entry.name not in value and required:
            report("", f"{name}.{entry.name} is missing; it must be {describe(hints[entry.name])}.")
            arguments[entry.name] = FAILED
        elif "check" in entry.metadata and arguments.get(entry.name, FAILED) is not FAILED:
            arguments[entry.name] = entry.metadata["check"](arguments[entry.name], f"{name}.{entry.name}", report)
    if FAILED in arguments.values():
        return FAILED
    try:
        return cls(**arguments)
    except FieldError as error:
        report(f"{name}.{error.key}", f"{name}.{error}")
    except ValueError as error:
        report(name, f"{name}: {error}")
    return FAILED
