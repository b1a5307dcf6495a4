"""Which store a data section was prepared as: written once by whoever prepares it, read by every rank.

The record lies under `data.directory`, named by the section's rules and the places it names. It is all that a rank reads to find
its store; raw files are looked at only where a person starts a run or a preparation.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.config import DataConfig
from data.documents import DataError
from data.source_config import HUB
from data.store.identity import differences, spell_out
from data.store.token_store import FORMAT, MANIFEST, read_manifest
from ds_configs.atomic_files import digest, read_object, write_json

RECORDS = "records"
_NAMED_STORES = 3
_AGAIN = ". Delete it and prepare the data again."


@dataclass(frozen=True)
class Store:
    """A finished store and what its manifest says."""

    folder: Path
    manifest: dict[str, Any]


def find_store(config: DataConfig) -> Store | None:
    """Return the store that this very section was last prepared as, None if there is none. Reads no raw file.

    Raises:
        ValueError: If the record or the store is damaged, or they do not belong together.
    """
    record = read_object(record_path(config), _AGAIN)
    if record.get("section") != section(config):
        return None
    folder = Path(config.directory) / record["store"]
    if not (folder / MANIFEST).is_file():
        return None
    manifest = read_manifest(folder)
    if manifest["identity"] != record["identity"]:
        raise DataError(
            f"{folder} is not the store that {record_path(config)} names: identity {manifest['identity'][:12]}, wanted"
            f" {record['identity'][:12]}. Delete the folder and prepare the data again."
        )
    return Store(folder, manifest)


def register(config: DataConfig, folder: Path) -> None:
    """Have ranks with this section open the store in `folder` from now on."""
    record = {"section": section(config), "store": folder.name, "identity": read_manifest(folder)["identity"]}
    path = record_path(config)
    if read_object(path, _AGAIN) != record:
        path.parent.mkdir(exist_ok=True)
        write_json(path, record)


def why_not(config: DataConfig) -> str:
    """What tells the stores of this name from the one that is wanted, as a sentence; nothing where there are none."""
    reasons = outdated(config)
    wanted = section(config)
    for path in sorted((Path(config.directory) / RECORDS).glob(f"{config.name}-*.json"))[-_NAMED_STORES:]:
        record = read_object(path, _AGAIN)
        keys = dict.fromkeys(_key(key) for key, _, _ in differences(record.get("section", {}), wanted))
        what = f"was made with other {', '.join(keys)}" if keys else "is gone"
        reasons.append(f"{record.get('store')} {what}")
    return f" ({'; '.join(reasons)}.)" if reasons else ""


def _key(place: str) -> str:
    """The key of the data section that a place in `section` stands for."""
    if place.startswith("rules."):
        return f"data.{place.removeprefix('rules.').removeprefix('sources[0].')}"
    return {"places.tokenizer": "data.tokenizer.path", "places.store": "data.store"}.get(place, "data.path")


def outdated(config: DataConfig) -> list[str]:
    """What to say of each store of this name in another format: such are not read."""
    manifests = sorted(Path(config.directory).glob(f"{config.name}-*/{MANIFEST}"))
    old = [path.parent for path in manifests if read_object(path, _AGAIN).get("format") != FORMAT]
    return [f"{folder} was made by another version of this program and is not used" for folder in old]


def record_path(config: DataConfig) -> Path:
    """Where it is written which store a section was prepared as."""
    return Path(config.directory) / RECORDS / f"{config.name}-{digest(section(config))[:12]}.json"


def section(config: DataConfig) -> dict[str, Any]:
    """What a data section asks for: its rules, and where it says that text and tokenizer lie."""
    places = {
        "sources": [[_portable(path, config.directory) for path in source.paths] for source in config.all_sources],
        "store": config.store and _portable(config.store, config.directory),
        "tokenizer": config.tokenizer.path and _portable(config.tokenizer.path, config.directory),
    }
    return {"format": FORMAT, "rules": spell_out(config), "places": places}


def _portable(path: str, directory: str) -> str:
    """Relative paths are taken from the stores' folder, so that a checkout can be moved as a whole, and two do not mix."""
    if path.startswith(HUB):
        return path
    return os.path.normpath(path) if os.path.isabs(path) else os.path.relpath(path, directory)
