"""Continue prompts with a trained model.

    python -m inference.generate RUN_DIR --prompt "..." [--prompt "..."] [options]

RUN_DIR is runs/<name>, which is exported once to runs/<name>/export, a checkpoint of it (runs/<name>@step00000100), or any Hugging Face
folder. Generated text goes to standard output as it comes, everything else to standard error. See docs/generation.md.
"""

import argparse
import dataclasses
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ds_configs.atomic_files import check_output, object_or_nothing
from ds_configs.commands import command
from inference.export import RECORD, find_folder
from inference.generation.prompts import Display, PromptBatch, batches_of, read_prompts
from inference.generation.settings import DTYPES, SamplingParams, choose_dtype, seed_of
from inference.generation.stopping import BOUNDARIES
from model.hardware.processors import set_threads

if TYPE_CHECKING:
    from inference.generation.engine import Engine


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line, every option at its default where it is not given."""
    parser = argparse.ArgumentParser(prog="python -m inference.generate", description="Continue prompts with a trained model.")
    parser.add_argument("model", type=Path, metavar="RUN_DIR", help="runs/<name>, runs/<name>@<checkpoint>, or a Hugging Face folder")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="text to continue; may be given several times")
    parser.add_argument("--prompt-file", metavar="FILE", help='one prompt a line, or .jsonl with {"prompt": ...}; - is standard input')
    parser.add_argument("--new-document", action="store_true", help="each text begins a document (a chapter, a poem); needs no prompt")
    parser.add_argument("--num-samples", type=int, default=1, metavar="N", help="texts for each prompt (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the texts there: .jsonl with facts, anything else as text")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end a text before this; may be given several times")
    parser.add_argument(
        "--stop-at",
        action="append",
        default=[],
        choices=tuple(BOUNDARIES),
        help="end a text there (chapter: 第...回, 章 or 卷 on a new line)",
    )
    for setting in (each for each in dataclasses.fields(SamplingParams) if each.metadata):
        kind, shown = type(setting.default), setting.metadata["help"] + " (%(default)s)"
        name = f"--{setting.name.replace('_', '-')}"
        parser.add_argument(name, type=kind, default=setting.default, metavar=setting.metadata["metavar"], help=shown)
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="texts at a time (%(default)s)")
    parser.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="auto",
        help="precision; auto is bf16 or fp32, whichever is faster here; int8 (CPU) is faster still and writes other texts (%(default)s)",
    )
    # DeepSpeed's launcher adds it; the environment says the same.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def continue_all(engine: "Engine", batches: Sequence[PromptBatch], num_samples: int, shown: TextIO) -> Iterator[dict[str, Any]]:
    """Continue all batches; show text as it comes.

    Yields:
        The facts of every text in order: prompt, sample, seed, settings, and those of its completion.
    """
    from inference.generation.writing import generate

    display = Display([prompt for batch in batches for prompt in batch.prompts], shown)
    done = 0

    def show(row: int, piece: str, last: bool) -> None:
        display.add(done + row, piece, last)

    for batch in batches:
        for row, completion in enumerate(generate(engine, batch.tokens, batch.sampling, show)):
            settings = dataclasses.asdict(batch.sampling) | {"dtype": engine.dtype}
            seed = seed_of(row, settings.pop("seed"))
            facts = {"prompt": batch.prompts[row], "sample": done % num_samples + 1, "seed": seed, "settings": settings}
            yield facts | dataclasses.asdict(completion)
            done += 1


@command("inference.generate")
def main(arguments: Sequence[str]) -> int:
    """The command. Of several processes only the first says what is wrong with what was asked for, and shows texts."""
    options = parse(arguments)
    num_processes, is_first = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK", "0") == "0"
    set_threads(num_processes)
    try:
        batches, folder = _prepare(options, num_processes, is_first)
        # Only now: torch, transformers and DeepSpeed take seconds to import, and a mistake should not wait for them.
        from inference.generation.engine import leave, load_engine

        dtype, why = choose_dtype(options.dtype, num_processes)
        if is_first and options.dtype == "auto":
            print(f"precision: {dtype}, {why}", file=sys.stderr)
        engine = load_engine(folder, dtype=dtype, tp_size=num_processes)
        output = options.output.open("w", encoding="utf-8", buffering=1) if options.output and is_first else None
    except (ValueError, OSError):
        if is_first:
            raise
        return 2
    about = {"model": str(options.model), "checkpoint": object_or_nothing(folder / RECORD).get("checkpoint")}
    start, num_tokens, num_written = time.perf_counter(), 0, 0
    num_texts = sum(len(batch.prompts) for batch in batches)
    between = "\n" if num_texts > 1 else ""
    try:
        for text in continue_all(engine, batches, options.num_samples, _standard_output() if is_first else io.StringIO()):
            num_tokens += text["num_tokens"]
            if output and options.output.suffix == ".jsonl":
                output.write(json.dumps(text | about | {"new_document": options.new_document}, ensure_ascii=False) + "\n")
            elif output:
                output.write(f"{text['prompt']}{text['text']}\n{between}")
            num_written += 1
    except OSError as error:
        if sys.stdout:  # Python would flush it once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _told(error, f"{options.output} has {num_written} of {num_texts} texts" if output else None)
    seconds = time.perf_counter() - start
    if is_first:
        print(f"{num_tokens} tokens in {seconds:.1f} s, {num_tokens / seconds:.1f} tokens/s", file=sys.stderr)
    leave()
    return 0


def _told(error: OSError, kept: str | None) -> int:
    """Say why no more text is written, and what of it is kept in a file; gives the exit code."""
    closed = isinstance(error, BrokenPipeError)
    if closed and kept is None:
        return 0  # Who reads the text (head, less) has had enough.
    full = f"the text cannot be written ({error}). Is there room on that disk?"
    print(f"inference.generate: {f'standard output was closed, and {kept}.' if closed else full}", file=sys.stderr)
    return 2


def _standard_output() -> TextIO:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    return sys.stdout or io.StringIO()  # None if it was closed from the beginning.


def _prepare(options: argparse.Namespace, num_processes: int, is_first: bool) -> tuple[list[PromptBatch], Path]:
    """Everything that can be checked without torch (an export that is not there yet needs it)."""
    given: dict[str, Any] = {field.name: getattr(options, field.name) for field in dataclasses.fields(SamplingParams)}
    sampling = SamplingParams(**given | {"stop": tuple(options.stop), "stop_at": tuple(options.stop_at)})
    for name, value in (("batch size", options.batch_size), ("number of samples", options.num_samples)):
        if value < 1:
            raise ValueError(f"{name} = {value}; it must be 1 or more.")
    if options.output:
        check_output(options.output)
    if options.output and options.prompt_file and options.output.resolve() == Path(options.prompt_file).resolve():
        raise ValueError(f"{options.output}: holds the prompts, which the texts would replace. Name another file with --output.")
    if num_processes > 1 and (options.prompt_file == "-" or not (options.prompt or options.prompt_file or options.new_document)):
        raise ValueError("several processes cannot share standard input. Give prompts with --prompt or --prompt-file.")
    prompts = read_prompts(options.prompt, options.prompt_file, may_be_empty=options.new_document)
    texts = [prompt for prompt in prompts for _ in range(options.num_samples)]
    folder = find_folder(options.model, num_processes, is_first=is_first)
    return batches_of(texts, folder, sampling, options.batch_size, begin_documents=options.new_document), folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
