"""Benchmarks of lm-evaluation-harness, asked of a loaded model; the package is optional (requirements-lm-eval.txt).

The model is asked by our own engine through the harness's interface. Its Hugging Face back end, which needs further packages, is not
used.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from torch import Tensor
from torch.nn import functional

from data.documents import DataError
from ds_configs.errors import did_you_mean, first_line
from inference.evaluation.held_out import logits_of
from inference.evaluation.questions import is_file
from inference.generation.engine import Engine
from inference.generation.settings import SamplingParams
from inference.generation.writing import generate

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
        DataError: If the harness does not know the task, or its data is not here.
    """
    manager = TaskManager()
    wanted = _local(Path(task)) if is_file(task) else task
    if not is_file(task) and task not in manager.all_tasks and not Path(task).is_file():
        guess = did_you_mean(task, manager.all_tasks)
        raise DataError(f"task {task}: lm-evaluation-harness has none of this name. {guess} A file of questions ends in .json or .jsonl.")
    model = _Model(engine, batch_size)
    try:
        found = lm_eval.simple_evaluate(model=model, tasks=[wanted], task_manager=manager, batch_size=batch_size, bootstrap_iters=0)
    except DataError:
        raise
    except OSError as error:  # What datasets and hub raise where a task's data is not to be had, ConnectionError among them.
        raise DataError(f"task {task}: its data is not here ({first_line(error)}). docs/evaluation.md says where to put it.") from error
    except Exception as error:
        raise DataError(f"task {task}: cannot be run ({first_line(error)}).") from error
    tasks = {name: _plain(figures) for name, figures in found["results"].items()}
    if model.cut_contexts:
        log.warning("task %s: %d times the beginning of a question did not fit the model", task, model.cut_contexts)
    return {"cut_contexts": model.cut_contexts, "tasks": tasks}


def _plain(figures: dict[str, Any]) -> dict[str, Any]:
    """The harness says "acc,none" for the accuracy without a filter, and "sample_len" for the number of questions."""
    plain = {key.removesuffix(",none"): value for key, value in figures.items() if isinstance(value, int | float)}
    return {"questions" if key == "sample_len" else key: value for key, value in plain.items() if not key.endswith("_stderr")}


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


class _Model(TemplateLM):
    """The harness's questions to a model, answered by the engine."""

    def __init__(self, engine: Engine, batch_size: int) -> None:
        super().__init__()
        self._engine, self._batch_size = engine, batch_size
        self.cut_contexts = 0

    @property
    def eot_token_id(self) -> int:
        return self._engine.tokenizer.eos_ids[0] if self._engine.tokenizer.eos_ids else 0

    def tok_encode(self, string: str, **_: Any) -> list[int]:
        return self._engine.tokenizer.encode(string)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """(ln p(continuation | context), whether it is the greedy one) of each request."""
        rows = [self._fit(context, rest) for _, context, rest in requests]
        logits = logits_of(self._engine.core.module, rows, self._batch_size)
        return [_answer(one, rest) for (_, _, rest), one in zip(requests, logits, strict=True)]

    def _fit(self, context: list[int], rest: list[int]) -> np.ndarray:
        """What the model is given of both."""
        room = self._engine.max_positions + 1 - len(rest)  # The last token is no input.
        if room < 1:
            raise DataError(f"an answer of {len(rest)} tokens does not fit the model's {self._engine.max_positions} positions.")
        self.cut_contexts += len(context) > room
        return np.array([*context[-room:], *rest][:-1], dtype=np.int64)

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        raise DataError("it scores whole texts, which --text FILE does")

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        return [self._write(seed, *request.args) for seed, request in enumerate(requests)]

    def _write(self, seed: int, context: str, settings: dict[str, Any]) -> str:
        """What the model writes after a context, drawn as the task has it (greedily, if it says nothing), up to one of its stops."""
        wanted: dict[str, Any] = normalize_gen_kwargs(settings)
        positions = self._engine.max_positions
        new_tokens = min(wanted["max_gen_toks"], positions - 1)
        prompt, room = self.tok_encode(context), positions - new_tokens
        self.cut_contexts += len(prompt) > room
        drawn: dict[str, Any] = {"temperature": 1.0 if wanted["do_sample"] else 0.0, "top_p": 1.0}
        drawn |= {name: wanted[name] for name in ("temperature", "top_k", "top_p", "repetition_penalty") if wanted.get(name) is not None}
        sampling = SamplingParams(new_tokens=new_tokens, stop=tuple(filter(None, wanted["until"])), seed=seed, **drawn)
        return generate(self._engine, [prompt[-room:]], sampling)[0].text


def _answer(logits: Tensor, rest: list[int]) -> tuple[float, bool]:
    """By the logits (T, V) of a row that all but the last id of `rest` ends."""
    scores = functional.log_softmax(logits[len(logits) - len(rest) :].float(), dim=-1)
    labels = torch.tensor(rest, device=scores.device)
    return float(scores.gather(1, labels[:, None]).sum()), bool((scores.argmax(-1) == labels).all())
