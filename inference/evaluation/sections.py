"""The sections of figures that a command of `inference.evaluate` asks for, found one by one; what they need is loaded when first used."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data.documents import DataError
from data.inspect import Subject
from data.tokenizers.tokenizer_folder import Tokenizer, load
from ds_configs import build_section
from ds_configs.atomic_files import object_or_nothing
from inference.evaluation.continuation import Probe, continue_corpus
from inference.evaluation.generated import judge_texts, read_generated
from inference.evaluation.held_out import Rows, Text, held_out_texts, score, texts_of_file
from inference.evaluation.memorization import CorpusIndex
from inference.evaluation.questions import is_file
from inference.evaluation.training_text import find_training_text, open_index
from inference.export import RECORD
from inference.exporting.model_path import max_positions
from inference.generation.engine import Engine, load_engine
from inference.generation.settings import choose_dtype

Section = tuple[str, dict[str, Any]]
_COMPARED_TOKENS = 4096


@dataclass(frozen=True)
class Evaluation:
    """A command line, and the Hugging Face folder of the model that it names."""

    options: argparse.Namespace
    folder: Path

    @cached_property
    def engine(self) -> Engine:
        """The model."""
        dtype, why = choose_dtype(self.options.dtype)
        if self.options.dtype == "auto":
            print(f"precision: {dtype}, {why}", file=sys.stderr)
        return load_engine(self.folder, dtype=dtype)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return load(self.folder)

    @cached_property
    def subject(self) -> Subject:
        """The store that the model was trained on."""
        return find_training_text(self.options.corpus or self.folder)

    @cached_property
    def ids(self) -> Subject:
        """The same, where its ids are given to the model.

        Raises:
            DataError: If they stand for another text there.
        """
        for _, stream in self.subject.streams("train")[:1]:
            theirs = self.subject.tokenizer()
            ids = stream.read(0, min(stream.num_tokens, _COMPARED_TOKENS)).tolist()
            ids = [index for index in ids if index not in theirs.special_ids]  # Another folder may give these as text.
            first, second = ("".join(tokenizer.decode(ids).split()) for tokenizer in (theirs, self.tokenizer))
            if first != second:
                raise DataError(
                    f"{self.subject.path}: its tokenizer is not that of {self.folder}, so its ids mean nothing to the model."
                    " Prepare the text with the model's tokenizer, or score it with --text FILE."
                )
        return self.subject

    @cached_property
    def index(self) -> CorpusIndex:
        """The training text."""
        return open_index(self.subject)

    @cached_property
    def rows(self) -> Rows:
        """How the run cuts text; a folder that does not say it gets rows as long as its model's positions."""
        said = object_or_nothing(self.folder / RECORD).get("rows") or {}
        if isinstance(said, dict) and said.get("seq_length") is None:
            rows = Rows(seq_length=min(max_positions(self.folder), 2048))
            print(f"{self.folder} does not say how its run cut text: rows of {rows.seq_length} tokens are scored", file=sys.stderr)
            return rows
        return build_section(Rows, said, "rows", str(self.folder / RECORD))

    def sections(self) -> Iterator[Section]:
        """Every section that was asked for: (name, figures).

        Raises:
            ValueError: If something cannot be read or does not fit.
        """
        options = self.options
        if options.held_out:
            texts = held_out_texts(self.ids)
            yield self._of_model("held-out text", {"store": self.subject.manifest["identity"], **self._score(texts)})
        for path in options.text:
            texts = texts_of_file(path, self.tokenizer, self.rows, chapters="chapter" in options.by)
            yield self._of_model(f"text of {path.name}", self._score(texts))
        if options.memorization is not None:
            probe = Probe(
                num_prefixes=options.memorization,
                prefix_tokens=options.prefix_tokens,
                new_tokens=options.new_tokens,
                batch_size=options.batch_size,
            )
            found = continue_corpus(self.engine, self.ids, self.index, probe)
            yield self._of_model("memorization", {"corpus": str(self.index.facts), **found})
        for path in options.generated:
            found = judge_texts(read_generated(path), self.index, ngram_size=options.ngram_size, min_span=options.min_span)
            yield f"generated texts of {path.name}", found
        for task in options.tasks:
            from inference.evaluation.harness import run_task  # It needs a package that is optional.

            found = run_task(self.engine, task, batch_size=options.batch_size)
            yield self._of_model(f"task {Path(task).stem if is_file(task) else task}", found)

    def _score(self, texts: list[Text]) -> dict[str, Any]:
        by = self.options.by or (["source"] if len(texts) > 1 else [])
        return score(self.engine.core.module, self.tokenizer, texts, self.rows, by=by, batch_size=self.options.batch_size)

    def _of_model(self, name: str, figures: dict[str, Any]) -> Section:
        """Figures of another precision than fp32 have it in their name."""
        dtype = self.engine.dtype
        return name if dtype == "fp32" else f"{name}, {dtype}", {"dtype": dtype, **figures}
