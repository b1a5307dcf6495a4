"""Which text a run reads: what its folder says of it, and whether a start may go on with the store it finds. No torch here."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ds_configs
from data.config import DataConfig
from data.store.identity import Identity, changed_keys, changes
from data.tokenizers.tokenizer_folder import fingerprint
from ds_configs import ConfigError
from ds_configs.checkpoints import MANIFEST, complete_tags
from ds_configs.files import object_or_nothing
from training.config import RunConfig

if TYPE_CHECKING:
    from data.serving.corpus import Corpus

log = logging.getLogger(__name__)

STORE = "store.json"  # In the run's folder: the manifest of the token store that it reads.


def changed_data(config: RunConfig, previous: Mapping[str, Any]) -> list[str]:
    """Problems with keys of the data section that decide which tokens are read. Which text it was is `check_text`.

    Args:
        config: The run as it would go on.
        previous: What its `config.json` says.
    """
    before = ds_configs.build_section(DataConfig, previous.get("data", {}), "data", str(config.folder / "config.json"))
    return [
        f"{config.path}: data differs from the run in {config.folder} ({change}). "
        "Use another run.name, or remove that folder to start anew."
        for change in changed_keys(before, config.data)[:1]
    ]


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
    for tag in reversed(complete_tags(config.folder / "checkpoints")):
        checkpoint = config.folder / "checkpoints" / tag
        text = object_or_nothing(checkpoint / MANIFEST).get("text")
        if text is None:
            unrecorded = checkpoint
        elif text["identity"] != now.sha256:
            what = _what_changed(config, text, now)
            raise ConfigError([f"{config.path}: not the text of {checkpoint}: {what}. {ways} ({text['store']})."])
        elif tokenizer is not None and text["tokenizer"] != tokenizer:
            raise ConfigError(
                [
                    f"{config.path}: the tokenizer is not that of {checkpoint}: SHA-256 {tokenizer[:12]}, wanted "
                    f"{text['tokenizer'][:12]}. The same text was prepared with another version of the tokenizers' library. {ways}."
                ]
            )
    if unrecorded is not None and tokenizer is not None:
        _check_unrecorded(config, unrecorded, tokenizer)


def _check_unrecorded(config: RunConfig, checkpoint: Path, tokenizer: str) -> None:
    """A checkpoint of a version that did not record its text: the run's copy of the tokenizer is all there is to compare."""
    ours = config.folder / "tokenizer"
    if ours.is_dir() and fingerprint(ours) != tokenizer:
        raise ConfigError(
            [
                f"{config.path}: the tokenizer of the token store is not the one in {ours}, so {checkpoint} was trained with other text. "
                "Use another run.name, or put the old text back."
            ]
        )
    known = "Its tokenizer is that of the token store" if ours.is_dir() else "Nor is its tokenizer there to compare"
    log.warning("%s does not say which text it was trained on. %s; the run goes on.", checkpoint, known)


def _what_changed(config: RunConfig, text: dict[str, str], now: Identity) -> str:
    for path in (config.folder / STORE, Path(config.data.directory) / text["store"] / "manifest.json"):
        manifest = object_or_nothing(path)
        if manifest.get("identity") == text["identity"]:
            return changes(manifest, now)
    return f"identity {now.sha256[:12]}, wanted {text['identity'][:12]}"


def keep_text(corpus: Corpus, folder: Path) -> None:
    """Keep the tokenizer and the store's manifest in the run's folder, which is then enough to generate with, wherever it is taken."""
    from training.run_folder.record import replace  # That module imports this one.

    target = folder / "tokenizer"
    if not target.is_dir() or fingerprint(target) != corpus.text["tokenizer"]:
        partial = folder / "tokenizer.tmp"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(corpus.folder / "tokenizer", partial)
        shutil.rmtree(target, ignore_errors=True)  # Of an earlier start with other text that ended before its first checkpoint.
        partial.rename(target)
    replace(folder / STORE, json.dumps(corpus.manifest, indent=1, ensure_ascii=False) + "\n")
