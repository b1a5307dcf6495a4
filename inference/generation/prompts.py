"""Where prompts come from and where their continuations go: options, files, the terminal. Torch is not needed here."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

# A byte-level model that has learned little also writes control characters, and a terminal obeys them.
_CONTROLS = {code: None for code in [*range(32), 127, *range(128, 160)] if chr(code) not in "\n\t"}


class PromptError(ValueError):
    """The prompts cannot be used; the message is one line that says what to do."""


def read_prompts(given: Sequence[str], file: str | None, *, may_be_empty: bool = False) -> list[str]:
    """The prompts of the command line, then those of a file; without either, those on standard input unless a person sits there.

    Args:
        given: Prompts as they are.
        file: A text file with one prompt a line, a .jsonl file with {"prompt": ...} objects, or "-" for standard input.
        may_be_empty: Whether a prompt may have no text; without any, one such prompt is the answer, and standard input is not read.

    Raises:
        PromptError: If there is none, one is empty, or the file cannot be read.
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
        raise PromptError(f'{source}. Give one with --prompt "...", or one a line with --prompt-file FILE or on standard input.')
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.strip() and not (may_be_empty and not prompt):
            raise PromptError(f"prompt {number} is empty. Write at least one character for the model to continue.")
        if any(0xD800 <= ord(letter) < 0xE000 for letter in prompt):
            raise PromptError(f"prompt {number} is not UTF-8. Set the terminal to UTF-8, or put the prompt into a UTF-8 file.")
    return prompts


def _read(file: str) -> list[str]:
    """One prompt a line; lines without text are no prompts."""
    where = "standard input" if file == "-" else file
    try:
        text = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        lines = [line for line in text.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise PromptError(f"{where}: is not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise PromptError(f"{where}: cannot be read ({error.strerror}). Name a text file with one prompt a line.") from None
    return [_parse(line, f"{where}: prompt {number}") for number, line in enumerate(lines, start=1)] if file.endswith(".jsonl") else lines


def _parse(line: str, where: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError):
        prompt = None
    if not isinstance(prompt, str):
        raise PromptError(f'{where} is not an object like {{"prompt": "..."}}: {line[:60]}')
    return prompt


class Display:
    """Shows the continuations of several prompts one below the other, while all of them are written at once.

    The first that is not finished is shown as it grows; what the others have by then appears when their turn comes.
    """

    def __init__(self, prompts: Sequence[str], out: TextIO) -> None:
        self._prompts, self._out = prompts, out
        self._waiting = [""] * len(prompts)
        self._over = [False] * len(prompts)
        self._shown = 0
        self._begin()

    def add(self, row: int, piece: str, last: bool) -> None:
        """More text of one prompt."""
        self._waiting[row] += piece
        self._over[row] = last
        if row == self._shown:
            self._show()

    def _show(self) -> None:
        while self._shown < len(self._prompts):
            self._put(self._waiting[self._shown])
            self._waiting[self._shown] = ""
            if not self._over[self._shown]:
                return
            self._put("\n")
            self._shown += 1
            self._begin()

    def _begin(self) -> None:
        if self._shown == len(self._prompts):
            return
        if len(self._prompts) > 1:
            self._put(f"{'' if self._shown == 0 else chr(10)}[{self._shown + 1}/{len(self._prompts)}]\n")
        self._put(self._prompts[self._shown])

    def _put(self, text: str) -> None:
        if text:
            self._out.write(text.translate(_CONTROLS))
            self._out.flush()
