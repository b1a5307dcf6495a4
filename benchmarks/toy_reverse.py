"""Train `toy_reverse`, then count which strings it has never seen it writes backwards without a mistake.

    .venv/bin/python benchmarks/toy_reverse.py [dotted.key=value ...]

A run that is finished is only measured. The model is the plain one with the run's fp32 masters; it writes greedily, and a string counts
if the reversed string and the end of the text follow its separator exactly.
"""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import ds_configs
from data.batches.datasets import Datasets, open_datasets
from data.corpora.reverse import samples
from data.source_config import ReverseConfig
from data.tokenizers.tokenizer_folder import Tokenizer
from inference.exporting.checkpoint_weights import load_gpt
from inference.exporting.model_path import load_run_config
from model.gpt import GPT
from training.checkpoints.find_and_verify import newest_good
from training.config import resolve

CONFIG = "ds_configs/toy_reverse.json"
STRINGS_PER_LENGTH = 200


@dataclass(frozen=True)
class Learner:
    """A trained model with all that is needed to ask it."""

    model: GPT
    tokenizer: Tokenizer
    datasets: Datasets
    task: ReverseConfig

    def write(self, strings: Sequence[str]) -> list[str]:
        """What the model writes after each string and the separator, until each has ended; all strings are of one length."""
        tokens = torch.tensor([self.tokenizer.encode(string + self.task.separator) for string in strings])
        prompt = tokens.shape[1]
        with torch.inference_mode():
            for _ in range(prompt):  # As many letters as the string has, and the end.
                tokens = torch.cat([tokens, self.model(tokens)[:, -1:].argmax(-1)], dim=1)
        end = self.tokenizer.eos_id
        answers = [row[prompt:] for row in tokens.tolist()]
        return [self.tokenizer.decode(row[: row.index(end)]) if end in row else self.tokenizer.decode(row) + "..." for row in answers]

    def exact(self, strings: Sequence[str]) -> float:
        """Share of strings of one length that come back reversed, ended, and without a mistake."""
        written = self.write(strings)
        return sum(string[::-1] == answer for string, answer in zip(strings, written, strict=True)) / len(strings)


def load(run: Path) -> Learner:
    """The learner of a run folder, from its newest good checkpoint."""
    values, model = load_run_config(run)
    config = resolve(values)
    datasets = open_datasets(config.data, seed=config.run.seed)
    return Learner(load_gpt(newest_good(run).folder, model), datasets.tokenizer, datasets, config.data.reverse or ReverseConfig())


def unseen_strings(learner: Learner, per_length: int, seed: int = 0) -> dict[int, list[str]]:
    """Random strings of each length that are not in the training split; of the shortest lengths there are few or none."""
    task, draw = learner.task, random.Random(seed)
    trained_on = {document.text.partition(task.separator)[0] for document in samples(task, 0, task.num_samples)} - held_out(learner)
    found = {}
    for length in range(task.min_length, task.max_length + 1):
        drawn = dict.fromkeys("".join(draw.choices(task.alphabet, k=length)) for _ in range(4 * per_length))
        unseen = [string for string in drawn if string not in trained_on]
        if unseen:
            found[length] = unseen[:per_length]
    return found


def held_out(learner: Learner) -> set[str]:
    """The strings of the validation split, whose labels put together are its tokens."""
    batches = learner.datasets.valid.batches(replica=0, num_replicas=1, micro_batch=64)
    tokens = [token for _, labels in batches for token in labels.flatten().tolist() if token >= 0]
    text = "".join("\n" if token == learner.tokenizer.eos_id else learner.tokenizer.token(token) for token in tokens)
    return {line.partition(learner.task.separator)[0] for line in text.splitlines()}


def train(overrides: Sequence[str]) -> tuple[float, float]:
    """Seconds on the clock and of processor time, start-up and preparation of the data included."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "run_pretrain.sh", CONFIG, *overrides], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, used


def main(overrides: Sequence[str]) -> int:
    clock, processor = train(overrides)
    learner = load(resolve(ds_configs.load(CONFIG, overrides)).folder)
    strings = unseen_strings(learner, STRINGS_PER_LENGTH)
    right = total = 0.0
    print("\nlength  unseen strings  exactly reversed")
    for length, some in strings.items():
        exact = learner.exact(some)
        right, total = right + exact * len(some), total + len(some)
        print(f"{length:6d}  {len(some):14d}  {exact:16.1%}")
    print(f"   all  {total:14.0f}  {right / total:16.2%}")
    print(f"trained in {clock:.0f} s, {processor:.0f} s of processor time, start-up included")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
