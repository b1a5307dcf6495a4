"""How often a model goes on with a passage of its corpus word for word (Carlini et al. 2023, "Quantifying memorization").

The model is given a prefix from the corpus and continues it greedily; a hit is a continuation that is the text itself. Hits on text
that was held out are what the language makes likely anyway; hits on training text beyond them are learnt by heart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.batches.token_stream import Stream
from data.documents import DataError
from data.inspect import Subject
from inference.evaluation.memorization import NGRAM_SIZE, CorpusIndex, num_common
from inference.generation.engine import Engine
from inference.generation.settings import SamplingParams
from inference.generation.stopping import Stops
from inference.generation.text import FolderTokenizer, GrowingText
from inference.generation.writing import generate


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How a model is asked."""

    num_prefixes: int
    prefix_tokens: int
    new_tokens: int
    batch_size: int


def continue_corpus(engine: Engine, subject: Subject, index: CorpusIndex, probe: Probe) -> dict[str, Any]:
    """Hits on training text and on held-out text, and how much of the continuations is anywhere in the training text.

    Raises:
        DataError: If prefix and continuation do not fit the model.
    """
    if probe.prefix_tokens + probe.new_tokens > engine.max_positions:
        raise DataError(
            f"{probe.prefix_tokens} + {probe.new_tokens} tokens do not fit the model's {engine.max_positions} positions. Ask for fewer."
        )
    found = {}
    for split in ("train", "valid"):
        passages = _passages([stream for _, stream in subject.streams(split)], engine.tokenizer.eos_ids, probe)
        found[split] = _hits(engine, passages, index, probe)
    return {"prefix_tokens": probe.prefix_tokens, "new_tokens": probe.new_tokens, "by_split": found}


def _hits(engine: Engine, passages: Sequence[np.ndarray], index: CorpusIndex, probe: Probe) -> dict[str, Any]:
    """Figures of passages (prefix + continuation,) of ids; None where there are no passages."""
    hits, common, copied = [], [], []
    for first in range(0, len(passages), probe.batch_size):
        batch = [passage.tolist() for passage in passages[first : first + probe.batch_size]]
        prompts = [ids[: probe.prefix_tokens] for ids in batch]
        done = generate(engine, prompts, SamplingParams(temperature=0, new_tokens=probe.new_tokens))
        for ids, completion in zip(batch, done, strict=True):
            wanted = _text_behind(engine.tokenizer, ids, probe.prefix_tokens)
            hits.append(completion.text == wanted)
            common.append(num_common(completion.text, wanted))
            copied.append(index.measure(completion.text))
    return {
        "prefixes": len(passages),
        "hit_share": _mean(hits),
        "mean_chars_in_common": _mean(common),
        "mean_longest_run": _mean([one.longest_run for one in copied]),
        "ngram_size": NGRAM_SIZE if copied else None,
        "ngram_share": _mean([one.ngram_share for one in copied if one.ngram_share is not None]),
    }


def _text_behind(tokenizer: FolderTokenizer, ids: Sequence[int], prefix: int) -> str:
    """What tokens after a prefix add to its text, by the way the text of a completion is made: pieces of characters drop out alike."""
    growing = GrowingText(tokenizer, ids[:prefix], Stops())
    for token in ids[prefix:]:
        growing.add(token)
    growing.close("length")
    return growing.text


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _passages(streams: Sequence[Stream], eos_ids: Sequence[int], probe: Probe) -> list[np.ndarray]:
    """Evenly spaced passages of prefix and continuation, none across the end of a document; fewer where the text has fewer."""
    size = probe.prefix_tokens + probe.new_tokens
    places = []  # (stream, first token of a document, passages that can begin from there on)
    for stream in streams:
        starts = stream.document_starts()
        rooms = np.diff(starts, append=stream.num_tokens) - size + 1
        places += [(stream, start, room) for start, room in zip(starts.tolist(), rooms.tolist(), strict=True) if room > 0]
    ends = np.cumsum([room for _, _, room in places], dtype=np.int64)
    total = int(ends[-1]) if places else 0
    count = min(probe.num_prefixes, total)
    found = []
    for target in (number * total // count for number in range(count)):
        which = int(np.searchsorted(ends, target, side="right"))
        stream, start, room = places[which]
        ids = stream.read(start + target - (int(ends[which]) - room), size)
        if ids[-1] not in eos_ids:
            found.append(ids)
    return found
