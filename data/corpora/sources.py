"""Which documents a configuration means: parts that can be read one by one, by any worker.

Corpora known by name are `named.py`; how a file of some format is read is `formats.py`.
"""

import fnmatch
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.config import DataConfig
from data.corpora import poems, reverse
from data.corpora.chapters import Chapters, split_chapters
from data.corpora.named import CORPORA, fetch
from data.documents import DataError, Document, batched
from data.reading.find_files import find_files
from data.reading.formats import read, split
from data.reading.records import FIELD_NAMES, BadInput, FileRead, Piece, Remark
from data.source_config import ChaptersConfig, ReverseConfig, SourceConfig

_FIELD = re.compile(r"\{(\w+)\}")
_SAMPLES_PER_PART = 200_000


@dataclass(frozen=True)
class Part:
    """Documents of one source that one task reads."""

    source: int
    """Index of the source in `DataConfig.all_sources`."""
    pieces: tuple[Piece, ...] = ()
    samples: range = range(0)
    """Of the generated task."""


def parts(config: DataConfig, downloads: Path) -> list[Part]:
    """Return all parts in the order of the documents, fetching what has to be fetched.

    Raises:
        DataError: If something cannot be fetched or found.
    """
    found = []
    for index, source in enumerate(config.all_sources):
        if source.corpus == "reverse":
            total = (source.reverse or ReverseConfig()).num_samples
            starts = range(0, total, _SAMPLES_PER_PART)
            found += [Part(index, samples=range(start, min(start + _SAMPLES_PER_PART, total))) for start in starts]
            continue
        files = own_files(source) if source.path else fetch(CORPORA[source.corpus or ""], downloads)
        shard_bytes = config.shard_mib << 20
        # A thousand small files are not a thousand shards.
        shards = batched(split(files, source, shard_bytes), lambda piece: piece.num_bytes, shard_bytes)
        found += [Part(index, pieces=tuple(pieces)) for pieces in shards]
    return found


def documents(config: DataConfig, part: Part) -> Iterator[Document | BadInput | FileRead | Remark]:
    """Yield the documents of a part, before any cleaning rule, what could not be read, and what is to be said about the files.

    Raises:
        DataError: If a text has no chapters although chapters are asked for, or a package is missing.
    """
    source = config.all_sources[part.source]
    if part.samples:
        yield from reverse.samples(source.reverse or ReverseConfig(), part.samples.start, part.samples.stop)
    edit = CORPORA[source.corpus].edit if source.corpus else None
    # Fields named in the template are read besides those that the section names.
    in_template = dict.fromkeys(_FIELD.findall(source.template or ""))
    with_fields = replace(source, fields={name: name for name in in_template if name not in {*FIELD_NAMES, "form"}} | source.fields)
    named = in_template.keys() - {"text", "form"}
    lacking: Counter[str] = Counter()
    for piece in part.pieces:
        for item in read(piece, with_fields):
            if not isinstance(item, Document):
                yield item
                continue
            document = replace(item, text=edit(item.text)) if edit else item
            if source.chapters is not None:
                yield from _chapters(document, source.chapters)
            elif source.template:
                lacking.update(named - document.meta.keys())
                text, reason = _fill(source.template, document), "empty document: it has nothing that data.template asks for"
                yield replace(document, text=text) if text.strip() else BadInput(item.source, reason, len(item.text.encode("utf-8")))
            else:
                yield document
    for name, count in sorted(lacking.items()):
        said = f"{count} documents have no {name}, which data.template asks for; nothing stands there"
        yield Remark(config.source_names[part.source], said)


def _chapters(document: Document, wanted: ChaptersConfig) -> Iterator[Document | Remark]:
    """Yield the chapters that are asked for, and what was found and left out.

    Raises:
        DataError: If there are no headings, a number is missing, or the chapters asked for are not there.
    """
    found = split_chapters(document.text, wanted.absent)
    chapters = found.all
    # Where each volume begins at 1 again, chapters are counted through.
    several = len(found.volumes) > 1
    numbers = list(range(1, len(chapters) + 1)) if several else [chapter.number for chapter in chapters]
    _check_chapters(document, found, numbers, wanted)
    first, last = wanted.first, wanted.last or numbers[-1]
    said = (
        f"{len(chapters)} chapters in {len(found.volumes)} volumes, counted through"
        if several
        else f"chapters {numbers[0]} to {numbers[-1]}"
    )
    yield Remark(document.source, f"{said}; kept {first} to {last}")
    if found.passed_over:
        lines = ", ".join(map(str, found.passed_over[:5]))
        said = f"lines that look like headings but are not the next in order ({len(found.passed_over)}) stay text of a chapter: {lines}"
        yield Remark(document.source, said)
    if found.before.strip():
        yield Remark(document.source, "before the first chapter heading", len(found.before))
    kept = [(number, chapter.text) for number, chapter in zip(numbers, chapters, strict=True) if first <= number <= last]
    if len(kept) < len(chapters):
        left_out = sum(len(chapter.text) for chapter in chapters) - sum(len(text) for _, text in kept)
        yield Remark(document.source, f"chapters other than {first} to {last}", left_out)
    for number, text in kept:
        yield replace(document, text=text, source=f"{document.source}, chapter {number}")


def _check_chapters(document: Document, found: Chapters, numbers: Sequence[int], wanted: ChaptersConfig) -> None:
    if not numbers:
        raise DataError(
            f"{document.source}: no line is a chapter heading (第一回 ...), but data.chapters asks for chapters. For a text"
            " without chapters: data.chapters=null data.validation.last_documents=null data.validation.ratio=0.05"
        )
    if found.missing:
        raise DataError(
            f"{document.source}: chapter headings are missing: {'; '.join(found.missing)}. Mend them in the text (第三十四回 ...), or name"
            " the numbers that it does not have in data.chapters.absent, e.g. [34]: the chapter before then goes on to the next heading."
        )
    if wanted.first < numbers[0] or (wanted.last or 0) > numbers[-1] or wanted.first > numbers[-1]:
        raise DataError(
            f"{document.source}: chapters {numbers[0]} to {numbers[-1]} are there, data.chapters asks for {wanted.first} to"
            f" {wanted.last or 'the last'}. Set data.chapters.first={numbers[0]} data.chapters.last={numbers[-1]}, or bring the whole text."
        )


def _fill(template: str, document: Document) -> str:
    """Put a document's fields into a template; a field that it does not have is empty."""
    values = {**document.meta, "text": document.text}
    if "{form}" in template:  # Splitting a long text for nothing takes a millisecond.
        values["form"] = poems.form(poems.clauses(document.text))
    return _FIELD.sub(lambda match: values.get(match[1], ""), template)


def own_files(source: SourceConfig) -> list[Path]:
    """The files that a source's paths mean; with a named corpus, those that belong to it.

    Raises:
        DataError: If there are none.
    """
    files = find_files(source.paths)
    if source.corpus is None:
        return files
    wanted = CORPORA[source.corpus].files
    chosen = [path for path in files if fnmatch.fnmatch(path.name, wanted) and path.parent.name != "error"]
    if not chosen:
        raise DataError(f'data.path = {", ".join(source.paths)}: no file named {wanted} there, as the corpus "{source.corpus}" has them.')
    return chosen
