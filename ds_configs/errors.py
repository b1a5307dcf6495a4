"""The errors that say what is wrong with a configuration; how they show a value, quote another error and guess a misspelt name."""

import json
from collections.abc import Callable, Iterable, Sequence

_MOST_NAMES = 100  # More are counted and not listed: nobody finds one among thousands.

Report = Callable[[str, str], None]
"""Takes a problem: the dotted key that has it, and a sentence."""


class ConfigError(ValueError):
    """One or more mistakes in a configuration, all that were found in one pass.

    Attributes:
        problems: One line each, complete in itself: where, what, got, wanted, what to do.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class FieldError(ValueError):
    """What a section says of one of its own keys, raised from its `__post_init__`. Whoever builds it says where the section stands.

    Attributes:
        key: Dotted, relative to the section. The message begins with it.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(key + problem)
        self.key = key


def require(section: object, name: str, holds: bool, wanted: str) -> None:
    """Refuse a field unless its value `holds`: "<name> = <value>; it must be <wanted>."."""
    if not holds:
        raise FieldError(name, f" = {getattr(section, name)}; it must be {wanted}.")


def shown(value: object) -> str:
    """A value as JSON shows it, shortened."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_text(value: str) -> bool:
    """Whether it can be written to a UTF-8 file and name one: Python and JSON also know halves of characters (surrogates)."""
    return "\0" not in value and value == value.encode("utf-8", errors="ignore").decode("utf-8")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like `name`, or None when nothing is close."""
    import difflib  # here, because it is only needed once something is wrong

    by_folded = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), by_folded, n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that helps someone who wrote `name` where one of `known` was expected."""
    names = sorted(known)
    guess = nearest(name, names)
    if guess is not None:
        return f'Did you mean "{guess}"?'
    if len(names) > _MOST_NAMES:
        return f"None of the {len(names):,} names that are known here is like it."
    return f"Known here: {', '.join(names)}." if names else "Nothing is allowed here."


def few(names: Sequence[object], most: int = 6) -> str:
    """The first of some names for a line, and how many more there are."""
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """What another's error says first, or its kind if it says nothing: for the one line of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
