"""What a store must hold to be used by a configuration: checked when it is made and again, since keys change, when it is opened."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.config import DataConfig
from data.documents import DataError


def check_splits(splits: Mapping[str, Any], config: DataConfig) -> None:
    """Look at what a manifest says of a store's splits.

    Raises:
        DataError: If the training split, or of a weighted mixture what is in it of a source, does not fill one window; if nothing is
            held out.
    """
    filled = {"": splits["train"]["tokens"]}
    if config.is_weighted:
        of_sources = {part["source"]: part["tokens"] for part in splits["train"]["streams"]}
        filled |= {f" of {name}": of_sources.get(source, 0) for source, name in enumerate(config.source_names)}
    for of_source, num_tokens in filled.items():
        if num_tokens < config.seq_length + 1:
            raise DataError(
                f"{config.name}: {num_tokens} training tokens{of_source} are less than one window of data.seq_length + 1 ="
                f" {config.seq_length + 1}. Shorten the window or bring more text{', or remove the source' if of_source else ''}."
            )
    if not splits["valid"]["tokens"]:
        raise DataError(f"{config.name}: nothing is held out for validation. Raise data.validation.ratio, or bring more text.")


def check_store(folder: Path, manifest: dict[str, Any], config: DataConfig) -> None:
    """Hold a finished store, and what its preparation could not read, against the configuration of today.

    Raises:
        DataError: As `check_splits`, or above `data.max_bad_ratio`.
    """
    check_splits(manifest["splits"], config)
    if "bad_input" in manifest:  # A finished pair of another program has none.
        check_bad_ratio(manifest["bad_input"], config, f" {folder / 'report.txt'} lists them.")


def check_bad_ratio(counts: Mapping[str, int], config: DataConfig, more: str = "") -> None:
    """Compare what could not be read, as `bad_input` counts it, with the configuration.

    Raises:
        DataError: Above `data.max_bad_ratio`, by records or by bytes.
    """
    for unit in ("records", "bytes"):
        if counts[unit] > config.max_bad_ratio * counts[f"of_{unit}"]:
            raise DataError(
                f"{config.name}: {counts[unit]} of {counts[f'of_{unit}']} {unit} could not be read, more than data.max_bad_ratio ="
                f" {config.max_bad_ratio:g} allows.{more} Repair the input or raise the ratio."
            )
