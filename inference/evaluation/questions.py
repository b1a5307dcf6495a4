"""A benchmark of one's own: a file of questions, each with the choices to answer it.

It is checked here, because lm-evaluation-harness takes a missing question for an empty one.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

from data.documents import DataError

_WANTED = '{"question": "...", "choices": ["...", "..."], "answer": number of the right choice, from 0}'


def is_file(task: str) -> bool:
    """Whether a task is such a file, and not the name of a benchmark."""
    return Path(task).suffix in (".json", ".jsonl")


def check_task(task: str) -> None:
    """Whatever can be wrong with a task and costs nothing to find out.

    Raises:
        DataError: If lm-evaluation-harness is not installed, or the task is a file that holds no questions.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise DataError(f"--tasks {task} needs lm-evaluation-harness: .venv/bin/pip install -r requirements-lm-eval.txt")
    if is_file(task):
        check_questions(Path(task))


def check_questions(path: Path) -> None:
    """Check a .jsonl file, an object per line, or a .json file, a list of objects: `choices[answer]` is to be the likeliest continuation.

    Raises:
        DataError: If the file cannot be read, or one of them is no question.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: unreadable ({error}). It must be UTF-8 with an object per question: {_WANTED}.") from None
    if not isinstance(values, list) or not values:
        raise DataError(f"{path}: holds no questions. It must have an object per question: {_WANTED}.")
    for number, value in enumerate(values, start=1):
        _check_question(value if isinstance(value, dict) else {}, f"{path}: question {number}")


def _check_question(fields: dict[str, Any], where: str) -> None:
    question, choices, answer = fields.get("question"), fields.get("choices"), fields.get("answer")
    if not isinstance(question, str) or not question:
        raise DataError(f'{where}: has no "question". Wanted: {_WANTED}.')
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(one, str) and one for one in choices):
        raise DataError(f'{where}: "choices" must be two or more texts. Wanted: {_WANTED}.')
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise DataError(
            f'{where}: "answer" = {json.dumps(answer, ensure_ascii=False)} is none of its {len(choices)} choices, which count from 0.'
        )
