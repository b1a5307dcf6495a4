"""What was found out about a model: `evaluation.json` in the run's folder (or the exported one), and tables of it.

Each section says which checkpoint it is of, so that sections of different days stand side by side and a model card takes its own only.
"""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ds_configs.atomic_files import lock, read_object, write_json

FILE = "evaluation.json"
ABOUT = ("checkpoint", "step", "fingerprint")


def add(folder: Path, name: str, result: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write a section of JSON values, in the place of an earlier one of the same name and the same checkpoint.

    `about` has the values of `ABOUT`, which are None for a model of another origin.

    Raises:
        ValueError: As `read`.
    """
    with lock(folder / f".{FILE}.lock", f"{folder / FILE}: waiting for another evaluation that adds to it"):
        kept = [one for one in read(folder) if (one.get("name"), one.get("fingerprint")) != (name, about["fingerprint"])]
        made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_json(folder / FILE, {"sections": [*kept, {"name": name, **about, "made": made, **result}]})


def read(folder: Path, fingerprint: str | None = None) -> list[dict[str, Any]]:
    """The sections, all or those of one checkpoint; none where nothing was evaluated.

    Raises:
        ValueError: If the file is there and is no such record.
    """
    sections = read_object(folder / FILE).get("sections", [])
    if not isinstance(sections, list) or not all(isinstance(one, dict) for one in sections):
        raise ValueError(f"{folder / FILE}: holds something else than sections of figures. Move it away.")
    return [one for one in sections if fingerprint in (None, one.get("fingerprint"))]


def markdown(section: Mapping[str, Any]) -> str:
    """A section as a heading and tables: plain figures first, then one table for each group of figures."""
    plain = {key: value for key, value in section.items() if key not in ("name", "made", *ABOUT) and not isinstance(value, dict | list)}
    parts = [f"### {section['name']}"]
    if plain:
        parts.append(facts_table(plain))
    for key, value in section.items():
        if isinstance(value, dict) and value:
            parts.append(_groups(key, value))
        if isinstance(value, list) and value:
            parts.append(_table(list(value[0]), [[_shown(cell) for cell in row.values()] for row in value]))
    return "\n\n".join(parts)


def facts_table(facts: Mapping[str, Any]) -> str:
    """A table of two columns, name and value."""
    return _table(["", ""], [[name, _shown(value)] for name, value in facts.items()])


def _groups(name: str, groups: Mapping[str, Any]) -> str:
    """Groups with the same figures as one table, a line for each."""
    rows = {key: value if isinstance(value, dict) else {"": value} for key, value in groups.items()}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [[key, *(_shown(row.get(column)) for column in columns)] for key, row in rows.items()]
    return _table([name.replace("_", " "), *columns], lines)


def _table(head: list[str], lines: list[list[str]]) -> str:
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in [head, *lines]]
    rows = [f"| {' | '.join(line)} |" for line in escaped]
    return "\n".join([rows[0], "|" + "---|" * len(head), *rows[1:]])


def _shown(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
