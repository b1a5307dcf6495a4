"""What a token store is: which text went in, by hash; by which rules, spelled out; with which tokenizer; in which format.

Here is what an identity says and how two are compared. How it is worked out from raw files is `data/steps/identify.py`; how ranks
find what was prepared is `registry.py`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from data.cleaning_config import BOILERPLATE, make_rules
from data.config import DataConfig
from data.source_config import ReverseConfig, SourceConfig
from data.store.token_store import FORMAT
from ds_configs.atomic_files import digest
from ds_configs.errors import few
from ds_configs.overrides import DATA_WITHOUT_EFFECT

# What decides how samples are cut from a store and in which order they come.
ORDER = ("seq_length", "windows", "tail")
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
        said = {"rules": self.rules, "inputs": self.inputs, "tokenizer_inputs": self.tokenizer}
        return {"format": self.format, "identity": self.sha256, **said}


STORE_RECORD = "store.json"  # In the folder of a run: the manifest of the store that it reads.


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
    rules = {key: value for key, value in _plain(config).items() if key not in {*of_sources, *_PLACES, *ORDER, *DATA_WITHOUT_EFFECT}}
    rules["tokenizer"].pop("path")
    if not config.shuffle:
        rules.pop("shuffle_seed")
    rules["mixed_by_weight"] = config.is_weighted
    rules["sources"] = [_spell_out_source(source) for source in config.all_sources]
    return rules


def _spell_out_source(source: SourceConfig) -> dict[str, Any]:
    rules = {key: value for key, value in _plain(source).items() if key not in ("path", "weight")}
    if source.corpus == "reverse":
        rules["reverse"] = _plain(source.reverse or ReverseConfig())
    rules["clean"] = [{"rule": name, **_plain(rule)} for name, rule in make_rules(source.clean)]
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


def changes(before: Mapping[str, Any], now: Identity) -> str:
    """What tells a store from another identity, as a phrase. `before` is the store's manifest."""
    found = [*_changed_rules(before["rules"], now.rules), *_changed_files(before["inputs"], now.inputs)]
    found += _changed_files(before["tokenizer_inputs"], now.tokenizer)
    if before["format"] != now.format:
        found.append(f"the format of stores was {before['format']}, is {now.format}")
    return few(found, _NAMED_CHANGES)


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
    one, other = ([(item.get("source"), item.get("type"), item["sha256"]) for item in side] for side in (before, now))
    if one == other:
        return []
    then, here = ({(item.get("source"), item["name"]): item["sha256"] for item in side} for side in (before, now))
    found = [f"{key[1]} has changed" for key in then.keys() & here.keys() if then[key] != here[key]]
    found += [f"{key[1]} is new" for key in here.keys() - then.keys()] + [f"{key[1]} is gone" for key in then.keys() - here.keys()]
    return sorted(found) or ["the files come in another order"]
