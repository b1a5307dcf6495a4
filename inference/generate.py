"""Continue prompts with a trained model.

    python -m inference.generate RUN_DIR --prompt "..." [--prompt "..."] [options]

RUN_DIR is runs/<name>, which is exported once to runs/<name>/export, or any Hugging Face folder. Generated text goes to standard output
as it comes, everything else to standard error. See docs/generation.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from inference.export import export_of_run
from inference.exporting.checkpoint import CheckpointError
from inference.exporting.source import find_source, max_positions
from inference.generation.prompts import Display, PromptError, read_prompts
from inference.generation.settings import Sampling
from inference.generation.text import FolderTokenizer
from model.hardware.processors import usable_processors

if TYPE_CHECKING:
    from inference.generation.engine import Completion, Engine

DTYPES = ("auto", "float32", "bfloat16", "float16")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line, every option at its default where it is not given."""
    default = Sampling()
    parser = argparse.ArgumentParser(prog="python -m inference.generate", description="Continue prompts with a trained model.")
    parser.add_argument("model", type=Path, metavar="RUN_DIR", help="runs/<name>, or a Hugging Face folder")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="text to continue; may be given several times")
    parser.add_argument("--prompt-file", metavar="FILE", help='one prompt a line, or .jsonl with {"prompt": ...}; - is standard input')
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the texts there: .jsonl with facts, anything else as text")
    parser.add_argument("--new-tokens", type=int, default=default.new_tokens, metavar="N", help="tokens to add at most (%(default)s)")
    parser.add_argument("--temperature", type=float, default=default.temperature, metavar="X", help="0 is greedy (%(default)s)")
    parser.add_argument(
        "--top-k", type=int, default=default.top_k, metavar="K", help="draw from the K likeliest tokens, 0 is all (%(default)s)"
    )
    parser.add_argument(
        "--top-p", type=float, default=default.top_p, metavar="P", help="draw from the likeliest tokens that make up P (%(default)s)"
    )
    parser.add_argument("--repetition-penalty", type=float, default=default.repetition_penalty, metavar="X", help="1 is none (%(default)s)")
    parser.add_argument("--seed", type=int, default=default.seed, metavar="N", help="same seed, same text (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="prompts at a time (%(default)s)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="precision of the weights; auto is what is faster here (%(default)s)"
    )
    # DeepSpeed's launcher adds it; the environment says the same.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class Batch:
    """Prompts that are continued together, and how."""

    prompts: list[str]
    tokens: list[list[int]]
    sampling: Sampling


def find_folder(path: Path, num_processes: int) -> Path:
    """The Hugging Face folder to load: the path itself, or a run's export, made or renewed on the way.

    Raises:
        CheckpointError: If there is no model at the path.
    """
    source = find_source(path)
    if source.kind == "folder":
        return path
    if source.kind == "checkpoint":
        raise CheckpointError(f"{path}: is one checkpoint. Export it (.venv/bin/python -m inference.export {path} OUT), then name OUT.")
    if num_processes > 1:
        raise CheckpointError(
            f"{path}: several processes need a folder. Export it: .venv/bin/python -m inference.export {path} OUT --format opt"
        )
    return export_of_run(path)


def plan(prompts: Sequence[str], folder: Path, sampling: Sampling, batch_size: int) -> list[Batch]:
    """Cut prompts into batches, with no more new tokens than the model has positions for; what is cut is said.

    Raises:
        PromptError: If a prompt alone fills the positions, or has no tokens.
    """
    tokenizer, positions = FolderTokenizer(folder), max_positions(folder)
    tokens = [tokenizer.encode(prompt) for prompt in prompts]
    for number, ids in enumerate(tokens, start=1):
        if not ids:
            raise PromptError(f"prompt {number} is nothing to the tokenizer of {folder}. Use characters that it was trained on.")
        if len(ids) >= positions:
            raise PromptError(
                f"prompt {number} has {len(ids)} tokens and the model {positions} positions, so nothing can follow. Shorten the prompt."
            )
    batches = []
    for start in range(0, len(prompts), batch_size):
        stop = min(start + batch_size, len(prompts))
        room = positions - max(len(ids) for ids in tokens[start:stop])
        if room < sampling.new_tokens:
            which = "the prompt" if len(prompts) == 1 else f"the longest of prompts {start + 1} to {stop}"
            print(
                f"Adding {room} tokens instead of {sampling.new_tokens}: {which} leaves no more of {positions} positions.", file=sys.stderr
            )
        # A seed of its own for each batch: equal prompts in two of them should not get equal texts.
        fitting = dataclasses.replace(sampling, new_tokens=min(room, sampling.new_tokens), seed=sampling.seed + start)
        batches.append(Batch(list(prompts[start:stop]), tokens[start:stop], fitting))
    return batches


def run(engine: Engine, batches: Sequence[Batch], shown: TextIO, write: Callable[[str, Completion], None]) -> int:
    """Continue all batches; show text as it comes, and hand every prompt's completion to `write`, in order.

    Returns:
        The number of tokens generated.
    """
    from inference.generation.engine import generate

    display = Display([prompt for batch in batches for prompt in batch.prompts], shown)
    done = num_tokens = 0
    for batch in batches:
        show = functools.partial(_show, display, done)
        for prompt, completion in zip(batch.prompts, generate(engine, batch.tokens, batch.sampling, show), strict=True):
            write(prompt, completion)
            num_tokens += completion.num_tokens
            done += 1
    return num_tokens


def _show(display: Display, first: int, row: int, piece: str, last: bool) -> None:
    display.add(first + row, piece, last)


def open_output(path: Path | None, *, several: bool) -> Callable[[str, Completion], None]:
    """What writes completions to a file: objects, one a line, for .jsonl; else texts, with a blank line after each if there are several."""
    if path is None:
        return lambda prompt, completion: None
    file = path.open("w", encoding="utf-8", buffering=1)

    def write(prompt: str, completion: Completion) -> None:
        if path.suffix == ".jsonl":
            file.write(json.dumps({"prompt": prompt, **dataclasses.asdict(completion)}, ensure_ascii=False) + "\n")
        else:
            file.write(f"{prompt}{completion.text}\n" + ("\n" if several else ""))

    return write


def main(arguments: Sequence[str]) -> int:
    """The command. Exit code 2 is a mistake in what was asked for, told in one line."""
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    num_processes, is_first = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK", "0") == "0"
    _set_threads(num_processes)
    try:
        batches, folder = _prepare(options, num_processes)
        # Only now: torch, transformers and DeepSpeed take seconds to import, and a mistake should not wait for them.
        from inference.generation.engine import leave, load_engine

        engine = load_engine(folder, dtype=_dtype(options.dtype, num_processes, said=is_first), tp_size=num_processes)
        write = open_output(options.output if is_first else None, several=sum(len(batch.prompts) for batch in batches) > 1)
    except (ValueError, OSError) as error:
        if is_first:
            print(f"inference.generate: {error}", file=sys.stderr)
        return 2
    start = time.perf_counter()
    try:
        num_tokens = run(engine, batches, _standard_output() if is_first else io.StringIO(), write)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Who reads the text (head, less) has had enough. Python would flush to it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    seconds = time.perf_counter() - start
    if is_first:
        print(f"{num_tokens} tokens in {seconds:.1f} s, {num_tokens / seconds:.1f} tokens/s", file=sys.stderr)
    leave()
    return 0


def _dtype(wanted: str, num_processes: int, *, said: bool) -> str:
    """The precision of the weights, chosen as a run chooses its own. Several processes must agree, so on a CPU they do not measure."""
    if wanted != "auto":
        return wanted
    from model.hardware.devices import find_devices
    from model.hardware.precision import choose_precision

    devices = find_devices()
    setting: bool | Literal["auto"] = False if num_processes > 1 and devices.is_cpu else "auto"
    precision = choose_precision(setting, devices.kind)
    if said:
        why = precision.reason if setting == "auto" else "which several processes on a CPU use unless --dtype says otherwise"
        print(f"precision: {precision.name}, {why}", file=sys.stderr)
    return str(precision.dtype).removeprefix("torch.")


def _set_threads(num_processes: int) -> None:
    """What torch's threads read when torch is imported; nothing that is set already is changed."""
    # Threads that wait for each other spin by default. Where anything else runs, they then mostly wait for a core: on two busy cores a
    # 4.5 M model wrote 4 tokens/s with spinning and 150 without.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if num_processes > 1:
        # By itself each process takes all cores.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_processors() // num_processes)))


def _standard_output() -> TextIO:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    return sys.stdout


def _prepare(options: argparse.Namespace, num_processes: int) -> tuple[list[Batch], Path]:
    """Everything that can be checked without torch (an export that is not there yet needs it)."""
    sampling = Sampling(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Sampling)})
    if options.batch_size < 1:
        raise PromptError(f"batch size = {options.batch_size}; it must be 1 or more.")
    if options.output and (options.output.is_dir() or not options.output.parent.is_dir()):
        raise PromptError(f"{options.output}: cannot be written. Name a file in a folder that exists.")
    if num_processes > 1 and not options.prompt and options.prompt_file in (None, "-"):
        raise PromptError("several processes cannot share standard input. Give prompts with --prompt or --prompt-file.")
    prompts = read_prompts(options.prompt, options.prompt_file)
    folder = find_folder(options.model, num_processes)
    return plan(prompts, folder, sampling, options.batch_size), folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
