"""Judge a model: loss and bits per character on held-out text, what it has learnt by heart, the texts it wrote, benchmarks.

    python -m inference.evaluate RUN_DIR|FOLDER [--held-out] [--text FILE] [--memorization N] [--generated FILE] [--tasks NAME] [options]

The table goes to standard output, everything else to standard error. The same figures are written to `evaluation.json` in the run's folder
(or in FOLDER), and into the model card of the export. See docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_configs.files import object_or_nothing, write_json
from inference.export import RECORD
from inference.exporting.card import renew_evaluation
from inference.exporting.source import find_source, max_positions
from inference.generate import set_threads
from inference.generation.model_folder import find_folder
from inference.generation.precision import DTYPES, choose_dtype
from inference.judgement import questions, results

if TYPE_CHECKING:
    from data.inspect import Subject
    from inference.generation.engine import Engine
    from inference.judgement.held_out import Rows
    from inference.judgement.memorization import CorpusIndex

Section = tuple[str, dict[str, Any]]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line, every option at its default where it is not given."""
    parser = argparse.ArgumentParser(prog="python -m inference.evaluate", description="Judge a model.")
    parser.add_argument("model", type=Path, metavar="RUN_DIR", help="runs/<name>, runs/<name>@<checkpoint>, or a Hugging Face folder")
    what = parser.add_argument_group("what is judged (held-out text, if nothing else is asked for)")
    what.add_argument("--held-out", action="store_true", help="score the text that was held out of training")
    what.add_argument("--text", action="append", default=[], type=Path, metavar="FILE", help="score this text; may be given several times")
    what.add_argument("--memorization", type=int, metavar="N", help="continue N passages of the training text and N of the held-out text")
    what.add_argument(
        "--generated", action="append", default=[], type=Path, metavar="FILE", help="judge texts that inference.generate wrote"
    )
    what.add_argument(
        "--tasks", action="append", default=[], metavar="NAME", help="a benchmark of lm-eval, or a .json or .jsonl file of your questions"
    )
    parser.add_argument(
        "--by", action="append", default=[], choices=("source", "chapter", "form"), help="also score groups; may be given several times"
    )
    parser.add_argument("--prefix-tokens", type=int, default=32, metavar="N", help="of a passage to continue (%(default)s)")
    parser.add_argument("--new-tokens", type=int, default=32, metavar="N", help="that must be the text's own for a hit (%(default)s)")
    parser.add_argument("--ngram-size", type=int, default=10, metavar="N", help="characters of an n-gram (%(default)s)")
    parser.add_argument("--min-span", type=int, default=20, metavar="N", help="characters of a copied passage (%(default)s)")
    parser.add_argument("--corpus", type=Path, metavar="STORE", help="training text of a folder that does not name it")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="rows at a time (%(default)s)")
    parser.add_argument("--dtype", choices=(*DTYPES, "auto"), default="fp32", help="precision of the weights (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the figures of this command there, as JSON")
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class Job:
    """What was asked for, with what it needs: loaded when it is first used."""

    options: argparse.Namespace
    folder: Path
    """The Hugging Face folder."""

    @cached_property
    def engine(self) -> Engine:
        """The model."""
        from inference.generation.engine import load_engine

        dtype, why = choose_dtype(self.options.dtype)
        if self.options.dtype == "auto":
            print(f"precision: {dtype}, {why}", file=sys.stderr)
        return load_engine(self.folder, dtype=dtype)

    @cached_property
    def subject(self) -> Subject:
        """The store that the model was trained on."""
        from inference.judgement.training_text import find_training_text

        return find_training_text(self.options.corpus or self.folder)

    @cached_property
    def index(self) -> CorpusIndex:
        """The training text."""
        from inference.judgement.training_text import open_index

        return open_index(self.subject)

    @cached_property
    def rows(self) -> Rows:
        """How the run cuts text; a folder that does not say it gets rows as long as its model's positions."""
        from inference.judgement.held_out import Rows

        said = object_or_nothing(self.folder / RECORD).get("rows")
        if said is None or said["seq_length"] is None:
            rows = Rows(seq_length=min(max_positions(self.folder), 2048))
            print(f"{self.folder} does not say how its run cut text: rows of {rows.seq_length} tokens are scored", file=sys.stderr)
            return rows
        return Rows(**said)


def sections(job: Job) -> Iterator[Section]:
    """Every section that was asked for: (name, figures). Figures of another precision than fp32 have it in their name.

    Raises:
        ValueError: If something cannot be read or does not fit.
    """
    for name, figures in _asked_for(job):
        dtype = figures.get("dtype", "fp32")
        yield (name if dtype == "fp32" else f"{name}, {dtype}"), figures


def _asked_for(job: Job) -> Iterator[Section]:
    options = job.options
    other = options.text or options.memorization is not None or options.generated or options.tasks
    if options.held_out or not other:
        yield "held-out text", _held_out(job)
    for path in options.text:
        yield f"text of {path.name}", _text(job, path)
    if options.memorization is not None:
        yield "memorization", _memorization(job)
    for path in options.generated:
        yield f"generated texts of {path.name}", _generated(job, path)
    for task in options.tasks:
        yield f"task {Path(task).stem if questions.is_file(task) else task}", _task(job, task)


def _held_out(job: Job) -> dict[str, Any]:
    from data.tokenizers.tokenizer_folder import load
    from inference.judgement.held_out import held_out_texts, score

    texts = held_out_texts(job.subject)
    by = job.options.by or (["source"] if len(texts) > 1 else [])
    found = score(job.engine.core.module, load(job.folder), texts, job.rows, by=by, batch_size=job.options.batch_size)
    return {"dtype": job.engine.dtype, "store": job.subject.manifest["identity"], **found}


def _text(job: Job, path: Path) -> dict[str, Any]:
    from data.tokenizers.tokenizer_folder import load
    from inference.judgement.held_out import score, texts_of_file

    tokenizer = load(job.folder)
    texts = texts_of_file(path, tokenizer, job.rows, chapters="chapter" in job.options.by)
    by = job.options.by or (["source"] if len(texts) > 1 else [])
    found = score(job.engine.core.module, tokenizer, texts, job.rows, by=by, batch_size=job.options.batch_size)
    return {"dtype": job.engine.dtype, **found}


def _memorization(job: Job) -> dict[str, Any]:
    from inference.judgement.continuation import Probe, continue_corpus

    options = job.options
    probe = Probe(
        num_prefixes=options.memorization,
        prefix_tokens=options.prefix_tokens,
        new_tokens=options.new_tokens,
        batch_size=options.batch_size,
    )
    return {"dtype": job.engine.dtype, "corpus": str(job.index.facts), **continue_corpus(job.engine, job.subject, job.index, probe)}


def _generated(job: Job, path: Path) -> dict[str, Any]:
    from inference.judgement.generated import judge_texts, read_generated

    return judge_texts(read_generated(path), job.index, ngram_size=job.options.ngram_size, min_span=job.options.min_span)


def _task(job: Job, task: str) -> dict[str, Any]:
    from inference.judgement.harness import run_task

    return {"dtype": job.engine.dtype, **run_task(job.engine, task, batch_size=job.options.batch_size)}


def home_of(model: Path) -> Path:
    """The folder whose `evaluation.json` holds what is found out about a model: the run's, or a Hugging Face folder itself."""
    source = find_source(model)
    if source.run is not None:
        return source.run
    parent = model.resolve().parent
    return parent if (parent / "checkpoints").is_dir() else model


def main(arguments: Sequence[str]) -> int:
    """The command. Exit code 2 is a mistake in what was asked for, told in one line."""
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    set_threads(1)
    try:
        _check(options)
        home = home_of(options.model)
        job = Job(options, find_folder(options.model))
        checkpoint = object_or_nothing(job.folder / RECORD)
        found: list[Mapping[str, Any]] = []
        for name, result in sections(job):
            results.add(home, name, result, checkpoint)
            found.append({"name": name, **result})
            print(results.markdown(found[-1]) + "\n", flush=True)
        if options.output:
            about = {key: checkpoint.get(key) for key in results.ABOUT}
            write_json(options.output, {"model": str(options.model), **about, "sections": found})
        if checkpoint.get("fingerprint"):
            renew_evaluation(job.folder, home, checkpoint["fingerprint"])
    except (ValueError, OSError) as error:
        print(f"inference.evaluate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"written to {home / results.FILE}", file=sys.stderr)
    return 0


def _check(options: argparse.Namespace) -> None:
    for name in ("batch_size", "prefix_tokens", "new_tokens", "ngram_size", "min_span", "memorization"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} = {value}; it must be 1 or more.")
    if options.output and (options.output.is_dir() or not options.output.parent.is_dir()):
        raise ValueError(f"{options.output}: cannot be written. Name a file in a folder that exists.")
    for path in (*options.text, *options.generated):
        if not path.exists():
            raise ValueError(f"{path}: no such file.")
    for task in options.tasks:
        questions.check_task(task)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
