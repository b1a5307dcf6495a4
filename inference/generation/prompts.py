"""Where prompts come from, how they are cut into batches, and how texts are shown. Torch is not needed here."""

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from inference.exporting.model_path import max_positions
from inference.generation.settings import SamplingParams, seed_of
from inference.generation.text import FolderTokenizer

# A byte-level model that has learned little also writes control characters, and a terminal obeys them.
_CONTROLS = {code: None for code in [*range(32), 127, *range(128, 160)] if chr(code) not in "\n\t"}


def read_prompts(given: Sequence[str], file: str | None, *, may_be_empty: bool = False) -> list[str]:
    """The prompts of the command line, then those of a file; without either, those on standard input unless a person sits there.

    Args:
        given: Prompts as they are.
        file: A text file with one prompt a line, a .jsonl file with {"prompt": ...} objects, or "-" for standard input.
        may_be_empty: Whether a prompt may have no text; without any, one such prompt is the answer, and standard input is not read.

    Raises:
        ValueError: If there is none, one is empty, or the file cannot be read.
    """
    prompts = list(given)
    if may_be_empty and file is None and not given:
        return [""]
    if file is None and not given and not sys.stdin.isatty():
        file = "-"
    if file is not None:
        prompts += _read(file)
    if not prompts:
        source = {None: "no prompt", "-": "standard input holds no prompt"}.get(file, f"{file}: holds no prompt")
        raise ValueError(f'{source}. Give one with --prompt "...", or one a line with --prompt-file FILE or on standard input.')
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.strip() and not (may_be_empty and not prompt):
            raise ValueError(f"prompt {number} is empty. Write at least one character for the model to continue.")
        if any(0xD800 <= ord(letter) < 0xE000 for letter in prompt):
            raise ValueError(f"prompt {number} is not UTF-8. Set the terminal to UTF-8, or put the prompt into a UTF-8 file.")
    return prompts


def _read(file: str) -> list[str]:
    """One prompt a line; lines without text are no prompts."""
    where = "standard input" if file == "-" else file
    try:
        text = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        # Not splitlines: JSON may hold other characters that end a line there (U+2028) as they are.
        lines = [line for line in re.split(r"\r\n?|\n", text.decode("utf-8-sig")) if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: is not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise ValueError(f"{where}: cannot be read ({error.strerror}). Name a text file with one prompt a line.") from None
    if not file.endswith(".jsonl"):
        return lines
    records = [_parse(line, f"{where}: prompt {number}") for number, line in enumerate(lines, start=1)]
    if unused := list(dict.fromkeys(name for record in records for name in record if name != "prompt")):
        print(f"{where}: only the prompts of its objects are used, and not {', '.join(unused)}.", file=sys.stderr)
    return [record["prompt"] for record in records]


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise ValueError(f'{where} is not an object like {{"prompt": "..."}}: {line[:60]}')
    return record


@dataclass(frozen=True)
class PromptBatch:
    """Prompts that are continued together, and how: number i, from 0, with the seed `sampling.seed` + i."""

    prompts: list[str]
    tokens: list[list[int]]
    sampling: SamplingParams


def batches_of(
    prompts: Sequence[str], folder: Path, sampling: SamplingParams, batch_size: int, *, begin_documents: bool = False
) -> list[PromptBatch]:
    """Cut prompts into batches, with no more new tokens than the model has positions for; what is cut is said.

    Raises:
        ValueError: If a prompt alone fills the positions, or has no tokens.
    """
    tokenizer, positions = FolderTokenizer(folder), max_positions(folder)
    tokens = [tokenizer.encode(prompt, begins_document=begin_documents) for prompt in prompts]
    for number, ids in enumerate(tokens, start=1):
        if not ids and begin_documents:
            raise ValueError(f"{folder}: its model has no end-of-text token, so a document cannot begin with nothing. Give a prompt.")
        if not ids:
            raise ValueError(f"prompt {number} is nothing to the tokenizer of {folder}. Use characters that it was trained on.")
        if len(ids) >= positions:
            raise ValueError(
                f"prompt {number} has {len(ids)} tokens and the model {positions} positions, so nothing can follow. Shorten the prompt."
            )
    for prompt, ids in dict(zip(prompts, tokens, strict=True)).items():  # once for all its samples
        if unknown := sum(index == tokenizer.unknown_id for index in ids):
            print(
                f'prompt "{prompt[:20]}": {unknown} of {len(prompt)} characters are not in the vocabulary and are read as unknown ones.',
                file=sys.stderr,
            )
    batches = []
    for start in range(0, len(prompts), batch_size):
        stop = min(start + batch_size, len(prompts))
        room = positions - max(len(ids) for ids in tokens[start:stop])
        if room < sampling.new_tokens:
            several = f"the longest of prompts {start + 1} to {stop}" if stop - start > 1 else f"prompt {start + 1}"
            which = "the prompt" if len(set(prompts)) == 1 else several
            print(
                f"Adding {room} tokens instead of {sampling.new_tokens}: {which} leaves no more of {positions} positions.", file=sys.stderr
            )
        fitting = dataclasses.replace(sampling, new_tokens=min(room, sampling.new_tokens), seed=seed_of(start, sampling.seed))
        batches.append(PromptBatch(list(prompts[start:stop]), tokens[start:stop], fitting))
    return batches


class Display:
    """Shows the continuations of several prompts one below the other, while all of them are written at once.

    The first that is not finished is shown as it grows; what the others have by then appears when their turn comes.
    """

    def __init__(self, prompts: Sequence[str], out: TextIO) -> None:
        self._out = out
        heads = [f"\n[{number}/{len(prompts)}]\n" for number in range(1, len(prompts) + 1)] if len(prompts) > 1 else [""]
        heads[0] = heads[0].lstrip()
        self._waiting = [head + prompt for head, prompt in zip(heads, prompts, strict=True)]
        self._over = [False] * len(prompts)
        self._shown = 0
        self._show()

    def add(self, row: int, piece: str, last: bool) -> None:
        """More text of one prompt."""
        self._waiting[row] += piece + "\n" * last
        self._over[row] = last
        if row == self._shown:
            self._show()

    def _show(self) -> None:
        while self._shown < len(self._waiting):
            self._put(self._waiting[self._shown])
            self._waiting[self._shown] = ""
            if not self._over[self._shown]:
                return
            self._shown += 1

    def _put(self, text: str) -> None:
        if text:
            self._out.write(text.translate(_CONTROLS))
            self._out.flush()
