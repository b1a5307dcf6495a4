"""Loss, perplexity and bits per character of a model on text, as a whole and by source, chapter or form.

The text is cut into rows as a run cuts its held-out text, so that the run's own figure comes out; each token is scored once.
"""

import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from data.batches.windows import row_bounds
from data.corpora.chapters import split_chapters
from data.corpora.poems import form
from data.documents import DataError, Document
from data.inspect import Subject
from data.reading.find_files import find_files
from data.reading.formats import read, split
from data.reading.records import BadInput
from data.source_config import TextConfig
from data.tokenizers.tokenizer_folder import Tokenizer
from ds_configs.typed import Count
from inference.evaluation.verse import verse_lines

log = logging.getLogger(__name__)

Grouping = Literal["source", "chapter", "form"]
_NO_CHAPTER = "no chapter heading"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """How a run cuts text into rows."""

    seq_length: Count
    windows: Literal["stream", "documents"] = "stream"
    add_bos: bool = False
    add_eos: bool = True


@dataclass(frozen=True)
class Text:
    """Documents end to end as ids; `starts` is where each begins."""

    source: str
    ids: np.ndarray
    starts: np.ndarray
    num_chars: int | None = None
    """Characters, where they are known better than from the ids."""


@dataclass
class Score:
    """Totals of some text."""

    nats: float = 0.0
    tokens: int = 0
    characters: int = 0
    documents: int = 0

    def add(self, other: "Score") -> None:
        """Count other text too."""
        self.nats += other.nats
        self.tokens += other.tokens
        self.characters += other.characters
        self.documents += other.documents

    def figures(self) -> dict[str, float | int | None]:
        """Loss in nats per token, perplexity per token, bits per character, and what was counted."""
        loss = self.nats / self.tokens if self.tokens else None
        return {
            "loss": loss,
            "perplexity": math.exp(loss) if loss is not None and loss < 700 else None,
            "bits_per_char": self.nats / math.log(2) / self.characters if self.characters else None,
            "tokens": self.tokens,
            "characters": self.characters,
            "documents": self.documents,
        }


def held_out_texts(subject: Subject) -> list[Text]:
    """The held-out text of a store, each source by itself.

    Raises:
        DataError: If the store is not on this machine.
    """
    parts = subject.manifest["splits"]["valid"]["streams"]
    chars = [part.get("chars") for part in parts] if len(parts) > 1 else [subject.manifest["splits"]["valid"]["chars"]]
    return [
        Text(name, stream.read(0, stream.num_tokens), stream.document_starts(), count)
        for (name, stream), count in zip(subject.streams("valid"), chars, strict=True)
        if stream.num_tokens
    ]


def texts_of_file(path: Path, tokenizer: Tokenizer, rows: Rows, *, chapters: bool) -> list[Text]:
    """The documents of a file (or of a folder or pattern); what cannot be read is counted and said.

    Args:
        path: Any format that a preparation reads.
        tokenizer: The model's.
        rows: Says which special tokens stand around a document.
        chapters: Make a document of each chapter.

    Raises:
        DataError: If there is no such file, or no text in it.
    """
    texts, bad, fields = [], 0, dict[str, None]()
    reading = TextConfig()
    for piece in split(find_files([str(path)]), reading):
        documents: list[str] = []
        for item in read(piece, reading):
            bad += isinstance(item, BadInput)
            if isinstance(item, Document) and item.text:
                fields |= dict.fromkeys(item.meta)
                documents += _chapters(item.text) if chapters else [item.text]
        if documents:
            texts.append(_encode(piece.path.name, documents, tokenizer, rows))
    if bad:
        log.warning("%s: %d documents could not be read and are not scored", path, bad)
    if fields:
        log.warning("%s: the text of its records is scored, and not their %s; no template is applied", path, ", ".join(fields))
    if not texts:
        raise DataError(f"{path}: has no text to score.")
    return texts


def _chapters(text: str) -> list[str]:
    found = split_chapters(text)
    return [part for part in (found.before.strip(), *(chapter.text for chapter in found.all)) if part]


def _encode(source: str, documents: Sequence[str], tokenizer: Tokenizer, rows: Rows) -> Text:
    before = [tokenizer.bos_id] if rows.add_bos and tokenizer.bos_id is not None else []
    after = [tokenizer.eos_id] if rows.add_eos else []
    ids = [[*before, *tokenizer.encode(document), *after] for document in documents]
    sizes = np.array([len(part) for part in ids], dtype=np.int64)
    joined = np.array([index for part in ids for index in part], dtype=np.int64)
    return Text(source, joined, np.cumsum(sizes) - sizes, sum(map(len, documents)))


def score(
    model: Any, tokenizer: Tokenizer, texts: Iterable[Text], rows: Rows, *, by: Sequence[Grouping], batch_size: int
) -> dict[str, Any]:
    """Score texts, all together and in groups: the groups of one kind add up to the whole.

    `model` is a causal language model of `transformers`, which is given `batch_size` rows at a time.

    Raises:
        DataError: If a text has ids that the model does not know.
    """
    whole, groups, unknown = Score(), {kind: defaultdict[str, Score](Score) for kind in by}, 0
    for text in texts:
        if tokenizer.unk_id is not None:
            unknown += int((text.ids == tokenizer.unk_id).sum())
        if int(text.ids.max(initial=0)) >= model.config.vocab_size:
            known = f"the model has {model.config.vocab_size}"
            raise DataError(f"{text.source}: holds token {text.ids.max()}, and {known}. Its tokenizer is not the model's.")
        bounds = row_bounds(rows.windows, text.starts, len(text.ids), rows.seq_length)
        nats = token_nats(model, text.ids, bounds, tokenizer.eos_id, batch_size)
        whole_text = Score()
        for start, end in itertools.pairwise([*text.starts.tolist(), len(text.ids)]):
            ids = text.ids[start:end]
            num_chars = int(tokenizer.chars_per_id[ids].sum()) - tokenizer.chars_before
            document = Score(float(nats[start:end].sum()), end - start, num_chars, 1)
            whole_text.add(document)
            for kind, found in groups.items():
                if kind != "source":
                    found[_LABELS[kind](tokenizer.decode(ids.tolist()).strip())].add(document)
        if text.num_chars is not None:
            whole_text.characters = text.num_chars
        whole.add(whole_text)
        if "source" in groups:
            groups["source"][text.source].add(whole_text)
    if unknown:
        log.warning(
            "%d of %d characters are not in the vocabulary: each is scored as the unknown one, so its bits are too few",
            unknown,
            whole.characters,
        )
    return {
        **whole.figures(),
        **({"unknown": unknown} if unknown else {}),
        **{f"by_{kind}": {name: one.figures() for name, one in found.items()} for kind, found in groups.items()},
    }


def _chapter(document: str) -> str:
    """The heading that a document begins with."""
    found = split_chapters(document)
    return document.split("\n")[0].strip() if found.all and found.all[0].line == 1 else _NO_CHAPTER


# A label of a document for each kind of group but "source". A poem's title and author may stand on lines of their own.
_LABELS: dict[str, Callable[[str], str]] = {"chapter": _chapter, "form": lambda document: form(verse_lines(document))}


def token_nats(model: Any, ids: np.ndarray, bounds: np.ndarray, eos_id: int, batch_size: int) -> np.ndarray:
    """(tokens,) what each token costs, -ln p(token | the tokens before it in its row), in nats.

    Args:
        model: As in `score`.
        ids: (tokens,).
        bounds: (rows + 1,) where rows begin, and the end of the last.
        eos_id: Stands before the first token. Every later row is given the last token of the row before.
        batch_size: Rows at a time.
    """
    nats = np.empty(len(ids), dtype=np.float64)
    before = np.concatenate([[eos_id], ids[:-1].astype(np.int64)])
    rows = list(itertools.pairwise(bounds.tolist()))
    for (start, end), logits in zip(rows, logits_of(model, [before[start:end] for start, end in rows], batch_size), strict=True):
        labels = torch.from_numpy(ids[start:end].astype(np.int64)).to(logits.device)
        nats[start:end] = functional.cross_entropy(logits.float(), labels, reduction="none").cpu().numpy()
    return nats


@torch.inference_mode()
def logits_of(model: Any, rows: Sequence[np.ndarray], batch_size: int) -> Iterator[Tensor]:
    """(T, V) for each row of ids (T,), computed `batch_size` rows at a time."""
    for first in range(0, len(rows), batch_size):
        ids = [torch.from_numpy(row).to(model.device) for row in rows[first : first + batch_size]]
        # Padding on the right: a causal model sees it nowhere.
        inputs = pad_sequence(ids, batch_first=True)
        mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        logits = model(input_ids=inputs, attention_mask=mask, use_cache=False).logits  # (B, T, V)
        yield from (one[: len(row)] for one, row in zip(logits, ids, strict=True))
