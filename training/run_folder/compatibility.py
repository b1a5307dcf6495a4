"""Whether a start may go on with what it finds in the run's folder: same model, data, text, optimizer, seed, and room to save. No torch."""

import dataclasses
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ds_configs
from data.config import DataConfig
from data.store import token_store
from data.store.identity import STORE_RECORD, Identity, changed_keys, changes, differences
from data.tokenizers.tokenizer_folder import fingerprint
from ds_configs import ConfigError
from ds_configs.atomic_files import object_or_nothing, read_object
from model.config import ModelConfig
from model.families import preset
from model.flops import count_parameters
from training.checkpoints.find_and_verify import published, verify
from training.config import RunConfig, RunSection
from training.run_folder.lock import check_free

log = logging.getLogger(__name__)

# At most: fp32 weights, and per parameter an fp32 master and Adam's two moments.
CHECKPOINT_BYTES_PER_PARAMETER = 16


def check_folder(config: RunConfig) -> list[str]:
    """Refuse to go on beside another start, with another model, other data or another seed, or somewhere else, or on too small a disk.

    Returns:
        A line for each change of the schedule, or one if there is nothing to compare with, although the run goes on.

    Raises:
        ValueError: With what differs, or what is free and what is needed.
    """
    check_free(config.folder)  # First, or what a start that is at its end still writes would be looked at by nobody.
    folder, there = config.folder, config.path.parent
    recorded = object_or_nothing(config.path).get("run", {}) if config.path.name == "config.json" and published(there) else {}
    says_here = all(recorded.get(key) == config.values["run"].get(key) for key in ("directory", "name"))
    if recorded and says_here and not (folder.exists() and there.samefile(folder)):
        raise ConfigError(
            f"{config.path}: the run in {there} was moved or copied, and its record says {folder}. "
            f"To go on there: run.directory={there.parent} run.name={there.name}. For another run: run.name=NAME."
        )
    previous = read_object(folder / "config.json", ". It was damaged; remove it to have it written again.")
    goes_on = bool(published(folder))
    if goes_on and previous and (problems := list(_changes(config, previous))):
        raise ConfigError([f"{config.path}: {problem}" for problem in problems])
    # Checkpoints may be on a disk of their own. The folder itself is made once nothing is left to refuse.
    target = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    existing = next(parent for parent in (target, *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
        free = shutil.disk_usage(existing).free
    except OSError as error:
        raise ConfigError(
            f"{config.path}: the run's folder {target} cannot be written ({error.strerror}). Set run.directory to one that can."
        ) from error
    needed = count_parameters(config.model) * CHECKPOINT_BYTES_PER_PARAMETER
    if free < 2 * needed:
        raise ConfigError(
            f"{target}: {free / 1e9:.1f} GB free, but a checkpoint of this model takes {needed / 1e9:.1f} GB "
            "and saving needs room for two. Free some space, or set run.directory to another disk."
        )
    unknown = f"{folder / 'config.json'}: not there, so nothing says whether model, optimizer and seed are those of its checkpoints."
    if not goes_on or not previous:
        return [unknown] if goes_on else []
    changed = differences(previous.get("scheduler"), config.values.get("scheduler"), "scheduler")
    return [f"changed since the last start: {key}: {json.dumps(was)} -> {json.dumps(becomes)}" for key, was, becomes in changed]


def _changes(config: RunConfig, previous: Mapping[str, Any]) -> Iterator[str]:
    """What of a run cannot change after its first checkpoint, and is not as its `config.json` says. Which text it reads is `check_text`."""
    values, anew = config.values, "Use another run.name, or remove that folder to start anew."
    where, model = str(config.folder / "config.json"), previous.get("model", {})
    then = ds_configs.build_section(ModelConfig, preset(model), "model", where)
    changed = differences(dataclasses.asdict(then), dataclasses.asdict(config.model))
    # First what was written otherwise: a key such as the family also decides what others are.
    written = {key for key in {*model, *values["model"]} if model.get(key) != values["model"].get(key)}
    changed.sort(key=lambda change: change[0].partition(".")[0] not in written)
    for key, was, becomes in changed[:1]:
        what = f"model.{key} was {json.dumps(was, ensure_ascii=False)}, is {json.dumps(becomes, ensure_ascii=False)}"
        yield f"model differs from the run in {config.folder} ({what}). {anew}"
    data = ds_configs.build_section(DataConfig, previous.get("data", {}), "data", where)
    for change in changed_keys(data, config.data)[:1]:
        yield f"data differs from the run in {config.folder} ({change}). {anew}"
    before, now = (each.get("optimizer", {}).get("type") for each in (previous, values))
    if before != now:
        yield (
            f"optimizer.type = {now}, but the run in {config.folder} has the state of {before}, which {now} cannot use. "
            "Use another run.name."
        )
    if previous.get("run", {}).get("seed", RunSection.seed) != config.run.seed:
        yield f"run.seed differs from the run in {config.folder}: the order of the data would jump. Use another run.name."


def check_text(config: RunConfig, now: Identity, tokenizer: str | None = None) -> None:
    """Refuse to go on with other text or another tokenizer than the run's checkpoints were trained with.

    Args:
        config: The run.
        now: Identity of the store that would be read.
        tokenizer: SHA-256 of its tokenizer, None where it is not made yet.

    Raises:
        ConfigError: With what has changed and the two ways on.
    """
    ways = f"Use another run.name, or put back what {config.folder} was trained on"
    unrecorded = None
    for folder in reversed(published(config.folder)):
        checkpoint, _ = verify(folder, slice(0))  # What is damaged is said when one is chosen.
        text = checkpoint.manifest.get("text") if checkpoint else None
        if text is None:
            unrecorded = folder
        elif text["identity"] != now.sha256:
            what = _what_changed(config, text, now)
            raise ConfigError(f"{config.path}: not the text of {folder}: {what}. {ways} ({text['store']}).")
        elif tokenizer is not None and text["tokenizer"] != tokenizer:
            raise ConfigError(
                f"{config.path}: the tokenizer is not that of {folder}: SHA-256 {tokenizer[:12]}, wanted "
                f"{text['tokenizer'][:12]}. The same text was prepared with another version of the tokenizers' library. {ways}."
            )
    if unrecorded is not None and tokenizer is not None:
        _check_unrecorded(config, unrecorded, tokenizer)


def _check_unrecorded(config: RunConfig, checkpoint: Path, tokenizer: str) -> None:
    """A checkpoint of a version that did not record its text: the run's copy of the tokenizer is all there is to compare."""
    ours = config.folder / "tokenizer"
    if ours.is_dir() and fingerprint(ours) != tokenizer:
        raise ConfigError(
            f"{config.path}: the tokenizer of the token store is not the one in {ours}, so {checkpoint} was trained with other text. "
            "Use another run.name, or put the old text back."
        )
    known = "Its tokenizer is that of the token store" if ours.is_dir() else "Nor is its tokenizer there to compare"
    log.warning("%s does not say which text it was trained on. %s; the run goes on.", checkpoint, known)


def _what_changed(config: RunConfig, text: dict[str, str], now: Identity) -> str:
    for path in (config.folder / STORE_RECORD, Path(config.data.directory) / text["store"] / token_store.MANIFEST):
        manifest = object_or_nothing(path)
        if manifest.get("identity") == text["identity"]:
            return changes(manifest, now)
    return f"identity {now.sha256[:12]}, wanted {text['identity'][:12]}"
