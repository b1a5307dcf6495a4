"""What a token store is: which text went in, by hash; by which rules, spelled out; with which tokenizer; in which format.

Worked out by whoever prepares a store, who alone reads raw files. How ranks find what was prepared is `registry.py`.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from data.cleaning.cleaner import build_rules
from data.cleaning.rules import BOILERPLATE
from data.config import DataConfig, ReverseConfig, SourceConfig
from data.corpora import sources
from data.corpora.named import CORPORA
from data.documents import DataError
from data.reading.files import HUB
from data.store.hashes import FileHashes
from data.store.token_store import FORMAT
from data.tokenizers import adoption
from ds_configs.files import digest

logger = logging.getLogger(__name__)

# What decides how samples are cut from a store and in which order they come.
ORDER = ("seq_length", "windows", "tail")
# What changes neither the store nor what is read from it.
WITHOUT_EFFECT = ("directory", "num_workers", "max_bad_ratio")
_PLACES = ("path", "store")
_NAMED_CHANGES = 3


@dataclass(frozen=True)
class Identity:
    """What makes a store this one. Two stores with equal `sha256` hold the same tokens."""

    rules: dict[str, Any]
    inputs: list[dict[str, Any]]
    """Of each raw file in order: source (its index), name, type, sha256; of a fetched corpus its origin and pinned hash."""
    tokenizer: list[dict[str, str]] = field(default_factory=list)
    """Name and sha256 of the files of an existing tokenizer; none if one is trained."""
    format: int = FORMAT

    @cached_property
    def sha256(self) -> str:
        """The identity as hexadecimal digits. The names of raw files do not count: a text may be moved."""
        content = [[item["source"], item["type"], item["sha256"]] for item in self.inputs]
        return digest({"format": self.format, "rules": self.rules, "content": content, "tokenizer": self.tokenizer})

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> "Identity":
        """The identity of a finished store."""
        return cls(manifest["rules"], manifest["inputs"], manifest["tokenizer_inputs"], manifest["format"])

    def as_manifest(self) -> dict[str, Any]:
        """What a store's manifest says of it."""
        return {"identity": self.sha256, "rules": self.rules, "inputs": self.inputs, "tokenizer_inputs": self.tokenizer}


def text_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What a run, its checkpoints and its exports record of the store they read."""
    return {
        "store": f"{manifest['name']}-{manifest['identity'][:12]}",
        "identity": manifest["identity"],
        "tokenizer": manifest["tokenizer"]["sha256"],
    }


def spell_out(config: DataConfig) -> dict[str, Any]:
    """All rules that decide what a store holds, as JSON values with the defaults filled in.

    Where text and tokenizer lie does not belong to them (their hashes do), nor does what is decided when the store is read.
    """
    of_sources = {item.name for item in fields(SourceConfig)} | {"sources"}
    rules = {key: value for key, value in _plain(config).items() if key not in {*of_sources, *_PLACES, *ORDER, *WITHOUT_EFFECT}}
    rules["tokenizer"].pop("path")
    if not config.shuffle:
        rules.pop("shuffle_seed")
    rules["mixed_by_weight"] = config.is_weighted
    rules["sources"] = [_spell_out_source(config, source) for source in config.all_sources]
    return rules


def _spell_out_source(config: DataConfig, source: SourceConfig) -> dict[str, Any]:
    rules = {key: value for key, value in _plain(source).items() if key not in ("path", "weight")}
    if source.corpus == "reverse":
        rules["reverse"] = _plain(source.reverse or ReverseConfig())
    chosen = source.clean if source.clean is not None else config.clean
    rules["clean"] = [{"rule": rule.name.split(" ")[0], **_plain(rule.apply)} for rule in build_rules(chosen)]
    for rule in rules["clean"]:
        if rule.get("built_in"):
            rule["built_in"] = digest(BOILERPLATE)[:12]  # The patterns are too many to spell out.
    return rules


def spell_out_order(config: DataConfig) -> dict[str, Any]:
    """What decides, beside the store and the run's seed, which tokens a sample holds."""
    return {**{key: getattr(config, key) for key in ORDER}, "weights": [source.weight for source in config.all_sources]}


def _plain(config: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return values


def identify(config: DataConfig, hashes: FileHashes, before: Mapping[str, Any] | None = None) -> Identity:
    """Work out the identity of the store of `config` from the raw files.

    Args:
        config: The data section.
        hashes: A file that it knows and that has not changed is not read.
        before: Manifest of the store that this very section was prepared as. What of its text is not on this machine any more, or
            would have to be asked of a hub, is taken as it was then, and said.

    Raises:
        DataError: If a corpus is unknown or a path does not exist.
    """
    inputs: list[dict[str, Any]] = []
    if config.store is not None:
        inputs = _pair(config.store, hashes)
    for index, source in enumerate(config.all_sources):
        sources.check_known(source)
        kept = [item for item in before["inputs"] if item["source"] == index] if before else []
        if kept and (reason := _cannot_be_looked_at(source.paths)):
            logger.warning("%s %s: the store that was made of it is used as it is", ", ".join(source.paths), reason)
            inputs += kept
        elif source.path is None:
            known = CORPORA[source.corpus or ""]
            inputs.append({"source": index, "name": known.origin, "type": "corpus", "sha256": known.sha256})
        else:
            inputs += _files(index, sources.own_files(source), hashes)
    return Identity(spell_out(config), inputs, _tokenizer_files(config.tokenizer.path, hashes, before))


def _cannot_be_looked_at(paths: Sequence[str]) -> str | None:
    if any(path.startswith(HUB) for path in paths):
        return "is not asked for again"
    return "is not here any more" if paths and not any(_exists(path) for path in paths) else None


def _exists(path: str) -> bool:
    # Of a pattern, the part in front of the first wildcard: an emptied folder is a change, a folder that is gone is not.
    plain = path[: min((path.index(mark) for mark in "*?[" if mark in path), default=len(path))]
    return os.path.lexists(path) or (plain != path and os.path.isdir(os.path.dirname(plain) or "."))


def _tokenizer_files(path: str | None, hashes: FileHashes, before: Mapping[str, Any] | None) -> list[dict[str, str]]:
    if path is None:
        return []
    if before and not os.path.lexists(path):
        logger.warning("%s is not here any more: the store keeps the tokenizer that was made of it", path)
        kept: list[dict[str, str]] = before["tokenizer_inputs"]
        return kept
    return [{"name": file.name, "sha256": hashes.of(file)} for file in adoption.find_files(path)]


def _files(source: int, paths: Sequence[Path], hashes: FileHashes) -> list[dict[str, Any]]:
    """Each with its name below the folder that holds them all."""
    top = os.path.commonpath([path.absolute().parent for path in paths])
    names = [path.absolute().relative_to(top).as_posix() for path in paths]
    return [
        {"source": source, "name": name, "type": _type(path), "sha256": hashes.of(path)} for name, path in zip(names, paths, strict=True)
    ]


def _type(path: Path) -> str:
    """The ending, which says how a file is read."""
    packed = path.suffix if path.suffix in (".gz", ".zst") else ""
    return (path.with_suffix("") if packed else path).suffix.lower() + packed


def _pair(prefix: str, hashes: FileHashes) -> list[dict[str, Any]]:
    """The two files of a finished store.

    Raises:
        DataError: If they are not there.
    """
    found = []
    for ending in (".bin", ".idx"):
        path = Path(f"{prefix}{ending}")
        if not path.is_file():
            raise DataError(f'data.store = "{prefix}": there is no {path}. Give the common beginning of a .bin/.idx pair.')
        found.append({"source": 0, "name": path.name, "type": ending, "sha256": hashes.of(path)})
    return found


def changes(before: Mapping[str, Any], now: Identity) -> str:
    """What tells a store from another identity, as a phrase. `before` is the store's manifest."""
    found = [*_changed_rules(before["rules"], now.rules), *_changed_files(before["inputs"], now.inputs)]
    found += _changed_files(before["tokenizer_inputs"], now.tokenizer)
    if before["format"] != now.format:
        found.append(f"the format of stores was {before['format']}, is {now.format}")
    more = len(found) - _NAMED_CHANGES
    return ", ".join(found[:_NAMED_CHANGES]) + (f" and {more} more" if more > 0 else "")


def changed_keys(before: DataConfig, now: DataConfig) -> list[str]:
    """What differs between two sections of what decides which tokens a run reads, the raw files aside: "data.tail was ..., is ..."."""
    one, other = ({**spell_out(config), **spell_out_order(config)} for config in (before, now))
    return _changed_rules(one, other)


def _changed_rules(before: Any, now: Any) -> list[str]:
    return [f"data.{key.removeprefix('sources[0].')} was {_json(one)}, is {_json(other)}" for key, one, other in differences(before, now)]


def _json(value: object) -> str:
    return "not there" if value is None else json.dumps(value, ensure_ascii=False)


def differences(one: Any, other: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, value here, value there) wherever two JSON values part."""
    if isinstance(one, dict) and isinstance(other, dict):
        below = [(f"{key}.{name}" if key else name, one.get(name), other.get(name)) for name in sorted({*one, *other})]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        below = [(f"{key}[{index}]", *pair) for index, pair in enumerate(zip(one, other, strict=True))]
    else:
        return [] if one == other else [(key, one, other)]
    return [found for name, first, second in below for found in differences(first, second, name)]


def _changed_files(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[str]:
    if [item["sha256"] for item in before] == [item["sha256"] for item in now]:
        return []
    then, here = ({(item.get("source"), item["name"]): item["sha256"] for item in side} for side in (before, now))
    found = [f"{key[1]} has changed" for key in then.keys() & here.keys() if then[key] != here[key]]
    found += [f"{key[1]} is new" for key in here.keys() - then.keys()] + [f"{key[1]} is gone" for key in then.keys() - here.keys()]
    return sorted(found) or ["the files come in another order"]
