"""What is held out, budgets, and several sources."""

import dataclasses
import gzip
import re
import shutil
from pathlib import Path

import pytest

from data.batches.datasets import open_datasets
from data.cleaning_config import DeduplicateConfig
from data.config import TokenizerConfig, ValidationConfig
from data.documents import DataError
from data.prepare import prepare
from data.source_config import ChaptersConfig, SourceConfig
from data.store import token_store
from data.tokenizers import tokenizer_folder
from tests.data.stores import big_lines, texts_of, write_documents

# Splits, budgets and sources.


def test_a_share_of_many_documents_is_chosen_by_their_text(make, tmp_path):
    documents = write_documents(tmp_path / "many", 300)
    config = make(path=documents, chapters=None, validation=ValidationConfig(ratio=0.1), clean=())

    held_out = texts_of(prepare(config), "valid")
    again = texts_of(prepare(dataclasses.replace(config, shuffle=True)), "valid")

    assert 15 <= len(held_out) <= 45  # 30 expected; 3 standard deviations are 16
    assert sorted(held_out) == sorted(again)


def test_of_a_single_document_the_end_is_held_out(make, verse):
    folder = prepare(make(chapters=None, validation=ValidationConfig(ratio=0.1), clean=()))

    (train,), (valid,) = texts_of(folder, "train"), texts_of(folder, "valid")

    assert train + valid == verse.read_text(encoding="utf-8")
    assert train.endswith("\n")
    assert 0.05 < len(valid) / len(train) < 0.12


@pytest.mark.parametrize("end", ["\n\n", "\n长\n"])
def test_of_a_line_that_is_longer_than_what_is_held_out_a_part_is(make, tmp_path, end):
    text = "题\n" + "长" * 1000 + end
    (tmp_path / "line.txt").write_text(text, encoding="utf-8")
    folder = prepare(make(path=str(tmp_path / "line.txt"), chapters=None, validation=ValidationConfig(ratio=0.1), clean=()))

    assert [*texts_of(folder, "train"), *texts_of(folder, "valid")] == [text[:-100], text[-100:]]


def test_budgets_end_both_splits_between_documents(make, tmp_path):
    documents = write_documents(tmp_path / "many", 300)
    validation = ValidationConfig(ratio=0.2, max_tokens=500)

    manifest = token_store.read_manifest(
        prepare(make(path=documents, chapters=None, validation=validation, max_train_tokens=3000, clean=()))
    )

    assert manifest["splits"]["train"]["tokens"] == 49 * 61  # of 61 tokens each, end token included
    assert manifest["splits"]["valid"] | {"streams": 0} == {"tokens": 8 * 61, "documents": 8, "chars": 8 * 60, "streams": 0}


def test_a_budget_that_ends_in_one_shard_takes_nothing_of_the_shards_behind_it(make, tmp_path):
    (tmp_path / "long").mkdir()
    for number in range(12):  # Four of them fill a shard.
        (tmp_path / "long" / f"{number:02d}.txt").write_text(chr(0x4E00 + number) * 100_000, encoding="utf-8")
    validation = ValidationConfig(last_documents=6, max_tokens=150_000)

    folder = prepare(
        make(path=str(tmp_path / "long"), chapters=None, validation=validation, max_train_tokens=250_000, clean=(), shard_mib=1)
    )

    splits = token_store.read_manifest(folder)["splits"]
    assert [(splits[name]["documents"], splits[name]["tokens"]) for name in ("train", "valid")] == [(2, 200_002), (1, 100_001)]


def test_weighted_sources_are_mixed_by_weight(make, verse, tmp_path):
    other = write_documents(tmp_path / "other", 100)
    sources = (SourceConfig(path=str(verse), chapters=ChaptersConfig(), weight=1), SourceConfig(path=other, weight=3))
    config = make(path=None, chapters=None, sources=sources, validation=ValidationConfig(ratio=0.1), clean=())
    folder = prepare(config)
    datasets = open_datasets(config, seed=1)

    rows = [datasets.tokenizer.decode(datasets.train.sample(index).tolist()) for index in range(1000)]

    assert [stream["name"] for stream in token_store.read_manifest(folder)["splits"]["train"]["streams"]] == ["verse", "other"]
    assert abs(sum("，" in row or "。" in row for row in rows) - 250) <= 10  # verse has a comma in every row, but for chance
    assert datasets.valid.num_rows > 0


def mixture(make, tmp_path, counts, **changes):
    """Weighted sources of so many documents of 60 characters."""
    sources = tuple(
        SourceConfig(path=write_documents(tmp_path / f"source{index}", count, seed=index), weight=1) for index, count in enumerate(counts)
    )
    return make(**{"path": None, "chapters": None, "sources": sources, "clean": (), **changes})


@pytest.mark.parametrize(
    ("validation", "held_out"),
    [
        (ValidationConfig(last_documents=4), [4, 4]),
        (ValidationConfig(last_documents=4, max_tokens=4 * 61), [2, 2]),
        (ValidationConfig(ratio=0.2, max_tokens=2 * 61), [1, 1]),
    ],
)
@pytest.mark.parametrize("weighted", [True, False])
def test_of_each_source_a_part_is_held_out_and_scored_by_itself(make, tmp_path, validation, held_out, weighted):
    config = mixture(make, tmp_path, [80, 60], validation=validation)
    if not weighted:
        config = dataclasses.replace(config, sources=tuple(dataclasses.replace(source, weight=None) for source in config.sources or ()))
    folder = prepare(config)
    datasets = open_datasets(config, seed=1)

    assert list(datasets.valid_sources) == ["source0", "source1"]
    streams = token_store.read_manifest(folder)["splits"]["valid"]["streams"]
    assert [stream["documents"] for stream in streams] == held_out
    assert [valid.num_tokens for valid in datasets.valid_sources.values()] == [61 * count for count in held_out]
    assert sum(valid.num_chars() for valid in datasets.valid_sources.values()) == datasets.valid.num_chars() == 60 * sum(held_out)


@pytest.mark.parametrize(
    "validation", [ValidationConfig(ratio=0.2), ValidationConfig(last_documents=30), ValidationConfig(ratio=0.5, max_tokens=4 * 61)]
)
def test_sources_that_are_shuffled_into_one_text_are_scored_by_themselves_too(make, tmp_path, validation):
    mixed = mixture(make, tmp_path, [80, 60, 40], validation=validation, shuffle=True, documents="parquet")
    config = dataclasses.replace(mixed, sources=tuple(dataclasses.replace(source, weight=None) for source in mixed.sources or ()))
    folder = prepare(config)
    datasets = open_datasets(config, seed=1)

    assert len(token_store.read_manifest(folder)["splits"]["train"]["streams"]) == 1
    assert list(datasets.valid_sources) == ["source0", "source1", "source2"]
    assert sum(valid.num_tokens for valid in datasets.valid_sources.values()) == datasets.valid.num_tokens
    for index, valid in enumerate(datasets.valid_sources.values()):
        held_out = datasets.tokenizer.decode(valid._stream.read(0, valid.num_tokens).tolist())
        assert {path.read_text(encoding="utf-8") in held_out for path in (tmp_path / f"source{index}").iterdir()} == {True, False}
        assert len(held_out) == valid.num_chars() > 0
    if validation.max_tokens is None:
        assert len(texts_of(folder, "train")) + len(texts_of(folder, "valid")) == 180


def test_the_last_shard_of_each_source_is_held_out(make, tmp_path):
    sources = tuple(SourceConfig(path=big_lines(tmp_path / f"source{index}.jsonl", 600, seed=index), weight=1) for index in range(2))
    config = make(
        path=None, chapters=None, sources=sources, clean=(), shard_mib=1, shuffle=True, validation=ValidationConfig(last_shards=1)
    )

    splits = token_store.read_manifest(prepare(config))["splits"]

    assert [len(stream["shards"]) for stream in splits["valid"]["streams"]] == [1, 1]
    assert [len(stream["shards"]) for stream in splits["train"]["streams"]] == [1, 1]


def test_holding_out_more_shards_than_files_can_be_cut_into_is_refused_before_the_work(make, tmp_path):
    (tmp_path / "lines.jsonl.gz").write_bytes(gzip.compress(Path(big_lines(tmp_path / "lines.jsonl", 600)).read_bytes()))
    changes = {"path": str(tmp_path / "lines.jsonl.gz"), "chapters": None, "clean": (), "shard_mib": 1}
    config = make(**changes, validation=ValidationConfig(last_shards=1))

    with pytest.raises(DataError, match=r"last_shards = 1: there are 1 shards, .* Hold out fewer, make shards smaller \(.*data\.shuffle\)"):
        prepare(config)

    assert not list((tmp_path / "stores").glob(".*.work/1-clean"))
    assert prepare(dataclasses.replace(config, shuffle=True))


def test_a_source_that_cannot_be_mixed_is_refused_by_name(make, tmp_path):
    with pytest.raises(DataError, match=r"61 training tokens of source1 are less than one window of data\.seq_length \+ 1 = 101"):
        prepare(mixture(make, tmp_path, [80, 3], seq_length=100))
    shutil.rmtree(tmp_path / "source0")
    shutil.rmtree(tmp_path / "source1")
    with pytest.raises(DataError, match=r"source1: data\.validation\.last_documents = 2: there are 2 documents, so nothing"):
        prepare(mixture(make, tmp_path, [80, 2]))


def test_an_old_store_with_a_source_that_is_too_short_is_refused_before_training(make, tmp_path):
    config = mixture(make, tmp_path, [80, 3])
    prepare(config)

    for use in (lambda config: open_datasets(config, seed=1), prepare):
        with pytest.raises(DataError, match=r"61 training tokens of source1 are less than one window"):
            use(dataclasses.replace(config, seq_length=100))


def test_a_source_of_nothing_but_copies_is_refused_by_name(make, tmp_path):
    config = mixture(make, tmp_path, [80, 5], deduplicate=DeduplicateConfig())
    shutil.rmtree(tmp_path / "source1")
    (tmp_path / "source1").mkdir()
    for number in range(5):
        shutil.copy(tmp_path / "source0" / f"{number:04d}.txt", tmp_path / "source1")

    with pytest.raises(DataError, match=r"no text is left of source1: all 5 documents are dropped by data\.clean or copies of another"):
        prepare(config)


def test_a_budget_that_ends_before_a_source_begins_is_refused(make, tmp_path):
    sources = tuple(SourceConfig(path=write_documents(tmp_path / f"source{index}", 60, seed=index)) for index in range(2))

    with pytest.raises(DataError, match=r"max_train_tokens = 1000 is reached before source1 begins"):
        prepare(make(path=None, chapters=None, sources=sources, clean=(), max_train_tokens=1000))


def test_holding_out_more_than_anybody_means_is_said(make, caplog):
    prepare(make(validation=ValidationConfig(last_documents=12)))

    assert re.search(r"[\d,]+ of [\d,]+ tokens are held out for validation \(60%\) by data\.validation\.last_documents = 12", caplog.text)


def test_a_tiny_ratio_of_very_many_documents_holds_out_a_few(make, tmp_path, monkeypatch):
    monkeypatch.setattr("data.steps.shuffle._COUNT_CHARS_BELOW", 100)
    config = make(
        path=write_documents(tmp_path / "many", 300), chapters=None, shuffle=True, clean=(), validation=ValidationConfig(ratio=0.01)
    )

    assert len(texts_of(prepare(config), "valid")) == 3


def test_a_tokenizer_is_trained_on_passages_from_all_over_the_text(make, tmp_path):
    parts = []
    for index, first in enumerate((0x4E00, 0x5E00, 0x6E00)):
        parts.append(tmp_path / f"part{index}.txt")
        parts[-1].write_text("".join(chr(first + number % 50) for number in range(40_000)), encoding="utf-8")
    chosen = TokenizerConfig(kind="characters", training_chars=15_000)

    config = make(path=tuple(map(str, parts)), chapters=None, clean=(), tokenizer=chosen, validation=ValidationConfig(ratio=0.05))
    made = tokenizer_folder.load(prepare(config) / "tokenizer")

    assert made.vocab_size == 2 + 150
