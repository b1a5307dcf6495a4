"""Benchmarks of lm-evaluation-harness, asked of a loaded model; the package is optional (requirements-lm-eval.txt).

The model is asked by our own engine through the harness's interface. Its Hugging Face back end, which needs further packages, is not
used.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from data.documents import DataError
from inference.generation.settings import Sampling
from inference.generation.writing import generate
from inference.judgement import questions

if TYPE_CHECKING:
    from inference.generation.engine import Engine

log = logging.getLogger(__name__)


def run_task(engine: Engine, task: str, *, batch_size: int) -> dict[str, Any]:
    """Figures of one task, as the harness names them.

    Args:
        engine: The model.
        task: A name that the harness knows (cmmlu, ceval-valid ...), whose data `datasets` finds on this machine or fetches; or a file
            of questions, as `questions.py` reads it.
        batch_size: Sequences at a time.

    Returns:
        "tasks", the figures by task; "cut_contexts", how many times the beginning of a question did not fit the model.

    Raises:
        DataError: If the harness is not installed, or does not know the task, or its data is not here.
    """
    questions.check_task(task)
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    if not questions.is_file(task):
        _check_name(task, manager.all_tasks)
    model = _model(engine, batch_size)
    wanted = _local(Path(task)) if questions.is_file(task) else task
    try:
        found = lm_eval.simple_evaluate(model=model, tasks=[wanted], task_manager=manager, batch_size=batch_size, bootstrap_iters=0)
    except DataError:
        raise
    except OSError as error:  # What datasets and hub raise where a task's data is not to be had, ConnectionError among them.
        raise DataError(f"task {task}: its data is not here ({_first_line(error)}). docs/evaluation.md says where to put it.") from error
    except Exception as error:
        raise DataError(f"task {task}: cannot be run ({_first_line(error)}).") from error
    tasks = {name: _plain(figures) for name, figures in found["results"].items()}
    if model.cut_contexts:
        log.warning("task %s: %d times the beginning of a question did not fit the model", task, model.cut_contexts)
    return {"cut_contexts": model.cut_contexts, "tasks": tasks}


def _check_name(task: str, known: Collection[str]) -> None:
    if task in known or Path(task).is_file():
        return
    near = difflib.get_close_matches(task, known, n=3)
    meant = f" Did you mean {', '.join(near)}?" if near else ""
    raise DataError(f"task {task}: lm-evaluation-harness has none of this name.{meant} A file of questions ends in .json or .jsonl.")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _plain(figures: dict[str, Any]) -> dict[str, Any]:
    """The harness says "acc,none" for the accuracy without a filter, and "sample_len" for the number of questions."""
    names = {"sample_len": "questions"}
    plain = {key.removesuffix(",none"): value for key, value in figures.items() if isinstance(value, int | float)}
    return {names.get(key, key): value for key, value in plain.items() if not key.endswith("_stderr")}


def _local(path: Path) -> dict[str, Any]:
    return {
        "task": path.stem,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path.resolve())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")],
    }


def _model(engine: Engine, batch_size: int) -> Any:
    from lm_eval.api.model import TemplateLM

    class _Model(TemplateLM):
        """The harness's questions to a model, answered by the engine."""

        cut_contexts = 0

        @property
        def eot_token_id(self) -> int:
            return engine.tokenizer.eos_ids[0] if engine.tokenizer.eos_ids else 0

        def tok_encode(self, string: str, **_: Any) -> list[int]:
            return engine.tokenizer.encode(string)

        def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            fitting = [self._fit(context, rest) for _, context, rest in requests]
            return [
                answer for first in range(0, len(fitting), batch_size) for answer in _answers(engine, fitting[first : first + batch_size])
            ]

        def _fit(self, context: list[int], rest: list[int]) -> tuple[list[int], list[int]]:
            room = engine.max_positions + 1 - len(rest)  # The last token is no input.
            if room < 1:
                raise DataError(f"an answer of {len(rest)} tokens does not fit the model's {engine.max_positions} positions.")
            self.cut_contexts += len(context) > room
            return context[-room:], rest

        def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
            raise DataError("it scores whole texts, which --text FILE does")

        def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
            return [_written(engine, *request.args) for request in requests]

    return _Model()


@torch.inference_mode()
def _answers(engine: Engine, requests: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
    """(ln p(continuation | context), whether it is the greedy one)."""
    rows = [[*context, *rest] for context, rest in requests]
    longest = max(len(row) for row in rows) - 1
    inputs = torch.tensor([[*row[:-1], *[0] * (longest - len(row) + 1)] for row in rows], device=engine.core.module.device)
    mask = torch.tensor([[1] * (len(row) - 1) + [0] * (longest - len(row) + 1) for row in rows], device=inputs.device)
    logits = engine.core.module(input_ids=inputs, attention_mask=mask, use_cache=False).logits  # (B, T, V)
    found = []
    for row, (ids, (_, rest)) in enumerate(zip(rows, requests, strict=True)):
        scores = nn.functional.log_softmax(logits[row, len(ids) - 1 - len(rest) : len(ids) - 1].float(), dim=-1)
        labels = torch.tensor(rest, device=scores.device)
        found.append((float(scores.gather(1, labels[:, None]).sum()), bool((scores.argmax(-1) == labels).all())))
    return found


def _written(engine: Engine, context: str, settings: dict[str, Any]) -> str:
    """What the model writes greedily after a context, up to one of the task's stops."""
    new_tokens = min(int(settings.get("max_gen_toks", 256)), engine.max_positions - 1)
    prompt = engine.tokenizer.encode(context)[-(engine.max_positions - new_tokens) :]
    stop = settings.get("until") or ()
    stops = tuple(one for one in ((stop,) if isinstance(stop, str) else stop) if one)
    return generate(engine, [prompt], Sampling(temperature=0, new_tokens=new_tokens, stop=stops))[0].text
