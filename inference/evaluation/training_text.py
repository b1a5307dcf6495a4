"""The text that a model was trained on, with its suffix array: made once, and kept beside the store.

The text is what the store's tokens decode to, so exactly what the model saw. The index lies in `indexes/` beside the stores, under the
store's name, which holds its identity.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from data.batches.token_stream import Stream
from data.documents import DataError
from data.inspect import Subject, find_subject
from data.store.identity import STORE_RECORD
from data.store.token_store import MANIFEST
from ds_configs.atomic_files import object_or_nothing, read_object, replacing_folder, write_json
from inference.evaluation.memorization import BORDER, CorpusIndex, Facts, sort_suffixes
from inference.export import RECORD

log = logging.getLogger(__name__)

STORES = Path("data/stores")
MAX_CHARS = 50_000_000
LAYOUT = 1  # Raised when the files of an index change, so that one made before is made again.
_PIECE_TOKENS = 1 << 20


def find_training_text(path: Path) -> Subject:
    """The text of a run, a store, or an exported folder, which names a store: of the run that it lies in, or in STORES.

    Raises:
        DataError: If the text is not known or not here.
    """
    record = object_or_nothing(path / RECORD)
    if not record and "model_type" not in object_or_nothing(path / "config.json"):
        return find_subject(path)
    text = record.get("text")
    if not isinstance(text, dict) or not all(isinstance(text.get(key), str) for key in ("store", "identity")):
        raise DataError(f"{path}: does not say which text its model was trained on. inference.evaluate is told with --corpus STORE.")
    run = path.resolve().parent
    if object_or_nothing(run / STORE_RECORD).get("identity") == text["identity"]:
        return find_subject(run)
    folder = STORES / text["store"]
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{path}: its training text, the store {text['store']}, is not in {STORES}. Prepare the same text again.")
    return find_subject(folder)


def open_index(subject: Subject, max_chars: int = MAX_CHARS) -> CorpusIndex:
    """The index of a store's training text, read from beside the store or made there now.

    Of a text of more than `max_chars` evenly spaced passages are taken, about so many characters in all, which is logged and in the facts.

    Raises:
        DataError: If the run's store is not on this machine or is damaged.
    """
    if subject.folder is None:
        raise DataError(f"{subject.path}: its store is not here, so nothing can be held against its text. Prepare the same text again.")
    folder = subject.folder.parent / "indexes" / f"{subject.folder.name}-train-{max_chars}"
    index = _read(folder, subject.manifest["identity"])
    if index is None:
        log.info("sorting the train text of %s, once", subject.folder)
        index = _make(subject, max_chars)
        _write(index, folder)
    if index.facts.tokens < index.facts.tokens_of_split:
        log.warning("%s: %s", subject.folder, index.facts)
    return index


def _make(subject: Subject, max_chars: int) -> CorpusIndex:
    tokenizer = subject.tokenizer()
    streams = subject.streams("train")
    total = sum(stream.num_tokens for _, stream in streams)
    budget = _budget([stream for _, stream in streams], tokenizer.chars_per_id, max_chars)
    texts: list[str] = []
    rows: list[tuple[int, int, int]] = []
    start = tokens = 0
    for which, (_, stream) in enumerate(streams):
        for number, first, end in _documents(stream, budget * stream.num_tokens // max(1, total)):
            text = tokenizer.decode(stream.read(first, end - first).tolist())
            texts.append(text)
            rows.append((start, number, which))
            start += len(text) + len(BORDER)
            tokens += end - first
    text = BORDER.join(texts)
    documents = np.array(rows, dtype=np.int64).reshape(-1, 3)
    facts = Facts(subject.manifest["identity"], len(text), len(texts), tokens, total)
    return CorpusIndex(text, documents, [name for name, _ in streams], facts, sort_suffixes(text))


def _budget(streams: Sequence[Stream], chars_per_id: np.ndarray, max_chars: int) -> int:
    """About how many tokens of the streams make `max_chars` characters, by the beginning of each; all where they have fewer."""
    total = sum(stream.num_tokens for stream in streams)
    seen = chars = 0
    for stream in streams:
        ids = stream.read(0, min(stream.num_tokens, _PIECE_TOKENS)) if stream.num_tokens else np.empty(0, dtype=np.int64)
        seen, chars = seen + len(ids), chars + int(chars_per_id[ids].sum())
    return total if not chars else min(total, max_chars * seen // chars)


def _documents(stream: Stream, budget: int) -> Iterator[tuple[int, int, int]]:
    """(number, first token, end) of documents or parts of them: all, or in evenly spaced pieces of together `budget` tokens."""
    starts = stream.document_starts()
    pieces = [(0, stream.num_tokens)]
    if budget < stream.num_tokens:
        size = min(max(1, budget), _PIECE_TOKENS)
        count = max(1, budget // size)
        pieces = [(number * stream.num_tokens // count, number * stream.num_tokens // count + size) for number in range(count)]
    for first, end in pieces:
        low = int(np.searchsorted(starts, first, side="right")) - 1
        high = int(np.searchsorted(starts, end, side="left"))
        bounds = [first, *starts[low + 1 : high].tolist(), end]
        for number, (one, other) in enumerate(itertools.pairwise(bounds), start=low):
            if other > one:
                yield number, one, other


def _write(index: CorpusIndex, folder: Path) -> None:
    """The folder appears whole or not at all. Where it cannot be written, the next start makes the index again, which is said."""
    try:
        with replacing_folder(folder) as new:
            (new / "text.txt").write_bytes(index.text.encode("utf-8"))
            np.save(new / "suffixes.npy", index.order)
            np.save(new / "documents.npy", index.documents)
            write_json(new / "facts.json", {**asdict(index.facts), "names": index.names, "layout": LAYOUT})
    except OSError as error:
        log.warning("%s: the index cannot be kept (%s); it will be made again the next time", folder, error.strerror or error)


def _read(folder: Path, identity: str) -> CorpusIndex | None:
    """The index in a folder; None where there is none of this text and layout, or a damaged one, which is said."""
    if not folder.is_dir():
        return None
    try:
        values = read_object(folder / "facts.json")
        layout, names = values["layout"], values["names"]
        facts = Facts(**{field.name: values[field.name] for field in fields(Facts)})
        text = (folder / "text.txt").read_bytes().decode("utf-8")
        # Mapped: only the slots that a search looks at are read. As a plain array, whose items are reached faster.
        order = np.asarray(np.load(folder / "suffixes.npy", mmap_mode="r"))
        documents = np.load(folder / "documents.npy")
        fits = len(text) == len(order) == facts.characters and len(documents) == facts.documents
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("%s: is damaged (%s) and is made again", folder, error)
        return None
    if not fits or (facts.identity, layout) != (identity, LAYOUT):
        log.warning("%s: is not the index of this store and is made again", folder)
        return None
    return CorpusIndex(text, documents, names, facts, order)
