"""Scores of the held-out text, in one process: DeepSpeed's part is played by a plain sum."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data.batches.datasets import IGNORED_LABEL, open_datasets
from data.config import DataConfig, TokenizerConfig, ValidationConfig
from data.prepare import prepare
from data.source_config import SourceConfig
from training.preflight import sample_notes
from training.run.loop import evaluate


class Engine:
    """Scores the batches of one replica as the pipeline does, the sum over B * T, where a token costs its id."""

    def eval_batch(self, batches, num_micro_batches):
        totals = []
        for _ in range(num_micro_batches):
            _, labels = next(batches)
            totals.append(torch.where(labels == IGNORED_LABEL, 0, labels).sum().item() / labels.numel())
        return torch.tensor(sum(totals) / num_micro_batches, dtype=torch.float64)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    sources = []
    for name, first, count in (("prose", 0x4E00, 60), ("verse", 0x5E00, 20)):
        path = folder / f"{name}.txt"
        lines = ["".join(chr(first + (7 * line + column) % 90) for column in range(40)) for line in range(count)]
        path.write_text("\n".join(lines), encoding="utf-8")
        sources.append(SourceConfig(path=str(path), text_documents="line", weight=1))
    config = DataConfig(
        seq_length=16,
        tokenizer=TokenizerConfig(kind="characters"),
        sources=tuple(sources),
        clean=(),
        validation=ValidationConfig(last_documents=6),
        directory=str(folder / "stores"),
    )
    prepare(config)
    return open_datasets(config, seed=1)


@pytest.mark.parametrize(
    ("prompt", "tokens", "said"),
    [
        ("一二三四", 12, []),
        (None, 64, []),
        (
            "一二三四",
            13,
            ["has 4 tokens and training.sample_tokens = 13, in 16 positions of the model: passages have the first 4 of the prompt"],
        ),
        ("一" * 20, 4, ["passages have the first 15 of the prompt and 1 new ones."]),
    ],
)
def test_a_prompt_that_leaves_too_little_room_is_said(datasets, prompt, tokens, said):
    plan = SimpleNamespace(sample_prompt=prompt, sample_tokens=tokens)
    config: Any = SimpleNamespace(training=plan, model=SimpleNamespace(max_seq_length=16))
    notes = sample_notes(config, datasets)
    assert len(notes) == len(said)
    assert all(part in note for part, note in zip(said, notes, strict=True))


def run_config(datasets, eval_batches):
    batch = SimpleNamespace(micro_batch=2)
    return SimpleNamespace(batch=batch, data=datasets.config, training=SimpleNamespace(eval_batches=eval_batches))


def scores(datasets, replicas, eval_batches):
    """The mean over the replicas, as the pipeline engine takes it."""
    ranks: list[Any] = [SimpleNamespace(replica=replica, replicas=replicas) for replica in range(replicas)]
    each = [evaluate(Engine(), run_config(datasets, eval_batches), datasets, rank) for rank in ranks]
    return {tag: sum(score[tag] for score in each) / replicas for tag in each[0]}


def test_every_source_is_scored_by_itself_and_all_together(datasets):
    got = scores(datasets, 1, None)

    ids = {name: valid._stream.read(0, valid.num_tokens) for name, valid in datasets.valid_sources.items()}
    assert set(got) == {f"valid/{name}{what}" for name in ("", "prose/", "verse/") for what in ("loss", "bits_per_char")}
    for name, values in ids.items():
        assert got[f"valid/{name}/loss"] == pytest.approx(values.mean(), rel=1e-12)
    assert got["valid/loss"] == pytest.approx(sum(map(sum, ids.values())) / sum(map(len, ids.values())), rel=1e-12)


@pytest.mark.parametrize("eval_batches", [None, 1, 5])
def test_a_score_does_not_depend_on_the_number_of_replicas(datasets, eval_batches):
    one = scores(datasets, 1, eval_batches)

    for replicas in (2, 3, 4):
        assert scores(datasets, replicas, eval_batches) == pytest.approx(one, rel=1e-12)  # Sums of whole numbers, divided.


def test_a_single_source_has_no_scores_of_its_own(datasets):
    alone = dataclasses.replace(datasets.config, sources=None, path=str(datasets.config.all_sources[0].path), text_documents="line")
    prepare(alone)

    assert set(scores(open_datasets(alone, seed=1), 1, None)) == {"valid/loss", "valid/bits_per_char"}
