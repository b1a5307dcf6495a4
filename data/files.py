"""Which files a path means: a file, a folder, a pattern, a saved Hugging Face dataset, or one on the hub."""

import glob
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.documents import DataError

HUB = "hub:"
"""What a path begins with to mean a dataset of the Hugging Face hub: hub:OWNER/NAME, and @REVISION behind it."""
_HUB_FILES = ("*.parquet", "*.jsonl", "*.jsonl.gz", "*.jsonl.zst", "*.json", "*.json.gz", "*.csv", "*.txt")


def find_files(paths: Sequence[str]) -> list[Path]:
    """Return the files that `paths` mean, each once, in the order of `paths` and by name within each.

    Folders are searched to any depth; names that begin with a dot are left out. Files of types that are not read are
    returned too, so that the reader counts them. Links are followed for files, not for folders.

    Raises:
        DataError: If a path means no file, or a saved dataset has several splits.
    """
    files: dict[Path, None] = {}
    for path in paths:
        found = _from_hub(path) if path.startswith(HUB) else _from_disk(path)
        if not found:
            raise DataError(f"{path}: no such file, or an empty folder. Give a file, a folder or a pattern such as texts/**/*.txt.")
        files.update(dict.fromkeys(found))
    return list(files)


def _from_disk(path: str) -> list[Path]:
    # A name may hold [ and ], which mean something in a pattern: what exists is taken as it is.
    if os.path.isdir(path):
        return _from_folder(Path(path))
    if os.path.exists(path):
        return [Path(path)]
    found = []
    for match in sorted(glob.glob(path, recursive=True)):
        if os.path.isfile(match):
            found.append(Path(match))
        elif not path.endswith("**"):
            found += _from_folder(Path(match))
    return found


def _from_folder(folder: Path) -> list[Path]:
    if (folder / "dataset_dict.json").exists():
        splits = _read(folder / "dataset_dict.json").get("splits", [])
        if len(splits) == 1:
            return _from_folder(folder / splits[0])
        ways = " or ".join(str(folder / split) for split in splits)
        raise DataError(f"{folder}: a saved dataset with {len(splits)} splits; give one of them: {ways}.")
    if (folder / "state.json").exists() and (folder / "dataset_info.json").exists():
        return _from_saved_dataset(folder)
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def _from_saved_dataset(folder: Path) -> list[Path]:
    state = _read(folder / "state.json")
    if state.get("_indices_data_files"):
        raise DataError(f"{folder}: saved with a selection of its rows; load it with `datasets`, call flatten_indices() and save it again.")
    root = folder.resolve()
    files = [folder / entry["filename"] for entry in state.get("_data_files", [])]
    for file in files:
        if not file.resolve().is_relative_to(root):
            raise DataError(f"{folder}/state.json: names the file {file}, which is outside the folder.")
    return files


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: a saved dataset's description that cannot be read: {error}") from None


def _from_hub(path: str) -> list[Path]:
    """Fetch the data files of a hub dataset into the hub's own cache; scripts in it are neither fetched nor run."""
    from huggingface_hub import snapshot_download

    name, _, revision = path.removeprefix(HUB).partition("@")
    try:
        folder = snapshot_download(name, repo_type="dataset", revision=revision or None, allow_patterns=list(_HUB_FILES))
    except Exception as error:  # Its errors have no common base: HTTP, offline mode, names, files.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{path}: cannot be fetched from the Hugging Face hub: {reason} Without a network, give a folder instead."
        ) from error
    return _from_folder(Path(folder))
