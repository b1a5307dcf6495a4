"""Make the token store of a configuration: read, clean, deduplicate, shuffle, split, tokenize, report.

    python -m data.prepare CONFIG [dotted.key=value ...]

A store is named after the rules and the text it was made with; one that is there already is used again. A preparation that
was killed goes on where it was when it is started again.
"""

import errno
import logging
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from data import existing_tokenizer, sources, store, tasks
from data.config import DataConfig
from data.documents import DataError
from data.fetch import sha256_of
from data.files import HUB
from data.hashes import FileHashes
from data.tasks import Runner, lock

logger = logging.getLogger(__name__)

_MIN_FREE_BYTES = 64 << 20
_FREE_PER_INPUT_BYTE = 2  # Cleaned text, ids, and the shards of a shuffle; compressed input takes more.


def find_store(config: DataConfig) -> Path | None:
    """Return the folder of the finished store of `config`, None if there is none. Imports neither torch nor deepspeed.

    Where the text is not on this machine any more, the one store that was made by the same rules is meant.

    Raises:
        DataError: If the corpus is unknown, or the text is gone and several stores could be meant.
    """
    if any(path.startswith(HUB) for source in config.all_sources for path in source.paths) and len(same := _stores_by_rules(config)) == 1:
        return same[0]  # Nobody asks the hub again only to find what is here.
    try:
        folder, _ = _place(config)
    except DataError:
        same = _stores_by_rules(config)
        if len(same) == 1:
            return same[0]
        if same:
            names = ", ".join(folder.name for folder in same)
            raise DataError(
                f"{config.name}: its text is not there, and several stores have these rules: {names}. Remove the wrong ones."
            ) from None
        raise
    return folder if (folder / store.MANIFEST).is_file() else None


def _stores_by_rules(config: DataConfig) -> list[Path]:
    manifests = [(folder, store.read_manifest(folder)) for folder in _finished(config)]
    return [folder for folder, manifest in manifests if manifest["rules"] == config.rules()]


def why_not(config: DataConfig) -> str:
    """What tells the stores of this name from the one that is wanted, as a sentence; nothing where there are none."""
    reasons = []
    for folder in _finished(config)[-3:]:
        keys = differences(store.read_manifest(folder)["rules"], config.rules())
        reasons.append(f"{folder.name} was made {'with other ' + ', '.join(keys) if keys else 'from another text or tokenizer'}")
    return f" ({'; '.join(reasons)}.)" if reasons else ""


def differences(one: dict[str, Any], other: dict[str, Any], prefix: str = "data.") -> list[str]:
    """Dotted keys whose values differ."""
    found = []
    for key in sorted({*one, *other}):
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(prefix + key)
    return found


def _finished(config: DataConfig) -> list[Path]:
    return sorted(path.parent for path in Path(config.directory).glob(f"{config.name}-*/{store.MANIFEST}"))


def _place(config: DataConfig) -> tuple[Path, list[dict[str, str]]]:
    """Where the store lies, made or not, and its inputs. A change of the rules, the text or the tokenizer is another folder."""
    hashes = FileHashes(Path(config.directory) / ".hashes.json")
    inputs = foreign_inputs(config, hashes) if config.store is not None else sources.identity(config, hashes)
    if config.tokenizer.path is not None:
        files = existing_tokenizer.find_files(config.tokenizer.path)
        inputs += [{"name": f"tokenizer {path.name}", "sha256": sha256_of(path)} for path in files]
    if Path(config.directory).is_dir() and os.access(config.directory, os.W_OK):
        hashes.save()
    content = [item["sha256"] for item in inputs]
    key = store.digest({"format": store.FORMAT, "rules": config.rules(), "content": content})[:12]
    return Path(config.directory) / f"{config.name}-{key}", inputs


def prepare(config: DataConfig, run: Runner = tasks.run) -> Path:
    """Make the store of `config` unless it is there, and return its folder. `run` does the tasks of each step.

    A store that is there is compared with its hashes. Two preparations at once do not disturb each other: the second waits.

    Raises:
        DataError: If the text cannot be read, is too short, or the disk is too full.
    """
    from data import foreign, pipeline, publish

    Path(config.directory).mkdir(parents=True, exist_ok=True)
    folder, inputs = _place(config)
    work = folder.with_name(f".{folder.name}.work")
    with lock(folder.with_name(f".{folder.name}.lock")):
        if (folder / store.MANIFEST).is_file():
            shutil.rmtree(work, ignore_errors=True)
            manifest = store.read_manifest(folder)
            store.verify(folder, manifest)
            publish.check_length(manifest["splits"]["train"]["tokens"], config)
            logger.info("%s is up to date", folder)
            return folder
        _check_disk(config, folder.parent)
        work.mkdir(exist_ok=True)
        if config.store is not None:
            made = foreign.describe(config, inputs, work)
        else:
            steps = pipeline.run_steps(config, work, Path(config.directory).parent / "downloads", run)
            made = publish.publish(config, steps, inputs, work)
        made.replace(folder)
        shutil.rmtree(work)
    _show(folder)
    return folder


def _show(folder: Path) -> None:
    report = folder / "report.txt"
    if report.is_file():
        logger.info("%s", report.read_text(encoding="utf-8").split("\n\ndropped by")[0])


def _check_disk(config: DataConfig, folder: Path) -> None:
    """A full disk is cheap to notice before the work.

    Raises:
        DataError: If the store would not fit.
    """
    needed = _MIN_FREE_BYTES + _FREE_PER_INPUT_BYTE * sources.input_bytes(config)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder}: {free >> 20} MiB free, about {needed >> 20} MiB wanted. Make room, or set data.directory to another disk."
        )


def foreign_inputs(config: DataConfig, hashes: FileHashes) -> list[dict[str, str]]:
    """What identifies a finished store: its two files.

    Raises:
        DataError: If they are not there.
    """
    found = []
    for ending in (".bin", ".idx"):
        path = Path(f"{config.store}{ending}")
        if not path.is_file():
            raise DataError(f'data.store = "{config.store}": there is no {path}. Give the common beginning of a .bin/.idx pair.')
        found.append({"name": path.name, "sha256": hashes.of(path)})
    return found


def main(arguments: Sequence[str]) -> int:
    """Prepare the data of a configuration file; 2 is a mistake of the user's."""
    import ds_configs

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not arguments:
        print("usage: python -m data.prepare CONFIG [dotted.key=value ...]", file=sys.stderr)
        return 2
    try:
        loaded = ds_configs.load(arguments[0], arguments[1:])
        config = ds_configs.build(DataConfig, loaded.values.get("data", {}), "data", str(loaded.path))
        print(prepare(config))
    except (DataError, ds_configs.ConfigError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"the disk is full ({error.filename or 'data'}). Make room and start again: what is done stays done.", file=sys.stderr)
        return 2
    return 0


def stop(number: int, frame: FrameType | None) -> None:
    """On a signal leave at once, whatever the workers are doing: what is done stays done, and they end with this process."""
    print(f"{signal.Signals(number).name}: stopped. Start again to go on from here.", file=sys.stderr, flush=True)
    os._exit(128 + number)


if __name__ == "__main__":
    for handled in (signal.SIGINT, signal.SIGTERM):
        signal.signal(handled, stop)
    sys.exit(main(sys.argv[1:]))
