"""Which files a path means: a file, a folder, a pattern, a saved Hugging Face dataset, or one on the hub."""

import errno
import glob
import itertools
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from data.documents import DataError
from data.reading.compression import endings
from data.reading.formats import FORMATS
from data.source_config import HUB
from ds_configs.atomic_files import read_object
from ds_configs.errors import first_line

logger = logging.getLogger(__name__)
_say_once = cache(logger.warning)  # A preparation looks for its files several times.

_PIPES = "pipes, sockets or devices"  # Would be waited for without end.
_PAGE = re.compile(r"(readme|licen[cs]e)\.(md|txt)", re.IGNORECASE)  # About a dataset, beside its files in a copy of it.
_DESCRIBES = "; it should describe a saved dataset."
# All that is read, but for a page about the dataset and scripts.
_HUB_FILES = [f"*{ending}{packed}" for ending in FORMATS if ending not in (".md", ".py") for packed in ("", ".gz", ".zst")]


def find_files(paths: Sequence[str]) -> list[Path]:
    """Return the files that `paths` mean, each once, in the order of `paths` and by name within each.

    Folders are searched to any depth; names that begin with a dot are left out. Files of types that are not read are
    returned too, so that the reader counts them. Links are followed; one that leads nowhere, a file that is met
    again by way of one, and what is no file is left out, and said.

    Raises:
        DataError: If a path means no file, a file or folder cannot be read, or a saved dataset has several splits.
    """
    files: dict[str, Path] = {}
    left_out: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        found: list[Path] = []
        for file in _from_hub(path) if path.startswith(HUB) else _from_disk(path):
            (found if file.is_file() else left_out[_PIPES if file.exists() else "links that lead nowhere"]).append(file)
        if not found:
            home = " A ~ is not your home here: write the path in full." if path.startswith("~") else ""
            raise DataError(f"{path}: no such file, or an empty folder. Give a file, a folder or a pattern such as texts/**/*.txt.{home}")
        if len(found) > 1 and (pages := [file for file in found if _PAGE.fullmatch(file.name)]):
            _say_once(
                "%d files named as pages about data, such as %s, are read as documents; a pattern such as *.jsonl leaves them out",
                len(pages),
                pages[0],
            )
        for file in found:
            known = files.setdefault(real := os.path.realpath(file), file)
            if known != file:  # The hub's cache has a file under its hash, and a link to it with an ending.
                files[real], again = sorted((known, file), key=lambda name: endings(name)[0] not in FORMATS)
                left_out["more names of files that are read already"].append(again)
    for what, named in left_out.items():
        _say_once("%d %s, such as %s, are left out", len(named), what, named[0])
    locked = [file for file in files.values() if not os.access(file, os.R_OK, effective_ids=True)]
    if locked:
        raise DataError(f"{len(locked)} of {len(files)} files may not be read, the first: {locked[0]}. Change permissions (chmod a+r).")
    return list(files.values())


def _from_disk(path: str) -> list[Path]:
    # A name may hold [ and ], which mean something in a pattern: what exists is taken as it is.
    if os.path.isdir(path):
        return _from_folder(Path(path))
    if os.path.exists(path):
        return [Path(path)]
    _check_folders(Path(path.partition("**")[0]))
    found = []
    for match in map(Path, _matches(path)):
        found += _from_folder(match) if match.is_dir() else [match]
    return found


def _matches(pattern: str) -> list[str]:
    """What a pattern matches, by name. `**` enters every folder once, so that a link to a folder above it is no endless way."""
    base, several, rest = pattern.partition("**")
    if not several:
        return sorted(glob.glob(pattern))
    found: list[str] = []
    for root in sorted(glob.glob(base)) if base else ["."]:
        for folder in _walk(Path(root)):
            inside = os.path.join(glob.escape(str(folder)), rest.lstrip("/") or "*")
            found += [match for match in _matches(inside) if rest or not os.path.isdir(match)]
    return sorted(map(os.path.normpath, found))


def _check_folders(pattern: Path) -> None:
    """A pattern passes over folders that may not be looked into, in silence."""
    for inside, parent in itertools.pairwise((pattern, *pattern.parents)):
        needed = os.X_OK if inside.name == glob.escape(inside.name) else os.X_OK | os.R_OK
        for folder in glob.glob(str(parent)):
            if os.path.isdir(folder) and not os.access(folder, needed, effective_ids=True):
                raise _unreadable(folder, os.strerror(errno.EACCES))


def _unreadable(folder: str, why: str | None) -> DataError:
    return DataError(f"{folder}: this folder cannot be read ({why}). Change its permissions (chmod a+rx).")


def _walk(root: Path) -> Iterator[Path]:
    """Yield a folder and those below it, each once however many links lead to it, but for those whose names begin with a dot.

    Raises:
        DataError: If one cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise _unreadable(error.filename, error.strerror)

    seen: set[str] = set()
    for parent, folders, _ in os.walk(root, followlinks=True, onerror=refuse):
        seen.add(os.path.realpath(parent))
        yield Path(parent)
        new = {os.path.realpath(os.path.join(parent, name)): name for name in sorted(folders, reverse=True) if not name.startswith(".")}
        folders[:] = sorted(name for real, name in new.items() if real not in seen)


def _from_folder(folder: Path) -> list[Path]:
    try:
        if (folder / "dataset_dict.json").exists():
            return _from_folder(_only_split(folder))
        if (folder / "state.json").exists() and (folder / "dataset_info.json").exists():
            return _from_saved_dataset(folder)
    except (TypeError, LookupError) as error:  # JSON, but something else is in it.
        raise DataError(f"{folder}: is not described as a saved dataset is ({error!r}). Save it again with `datasets`.") from error
    return sorted(path for parent in _walk(folder) for path in parent.iterdir() if not path.name.startswith(".") and not path.is_dir())


def _only_split(folder: Path) -> Path:
    splits = [_inside(folder, split) for split in read_object(folder / "dataset_dict.json", _DESCRIBES)["splits"]]
    if len(splits) != 1:
        raise DataError(f"{folder}: a saved dataset with {len(splits)} splits; give one of them: {' or '.join(map(str, splits))}.")
    return splits[0]


def _from_saved_dataset(folder: Path) -> list[Path]:
    state = read_object(folder / "state.json", _DESCRIBES)
    if state.get("_indices_data_files"):
        raise DataError(f"{folder}: saved with a selection of its rows; load it with `datasets`, call flatten_indices() and save it again.")
    return [_inside(folder, entry["filename"]) for entry in state["_data_files"]]


def _inside(folder: Path, name: str) -> Path:
    """What a saved dataset names in its folder."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{folder}: its description names {path}, which is outside the folder.")
    if not path.exists():
        raise DataError(f"{folder}: its description names {path}, which is not there. Bring it, or save the dataset again.")
    return path


def _from_hub(path: str) -> list[Path]:
    """Fetch the data files of a hub dataset, hub:OWNER/NAME[@REVISION], into the hub's own cache; scripts are neither fetched nor run."""
    from huggingface_hub import snapshot_download

    name, _, revision = path.removeprefix(HUB).partition("@")
    try:
        folder = snapshot_download(name, repo_type="dataset", revision=revision or None, allow_patterns=_HUB_FILES)
    except Exception as error:  # Its errors have no common base: HTTP, offline mode, names, files.
        raise DataError(
            f"{path}: cannot be fetched from the Hugging Face hub: {first_line(error)} Without a network, give a folder instead."
        ) from error
    return _from_folder(Path(folder))
