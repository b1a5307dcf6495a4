"""What a run reads: both splits, exact validation, and the same samples on any number of replicas."""

import dataclasses
import itertools
import shutil

import numpy as np
import pytest

from data.batches.datasets import IGNORED_LABEL, open_datasets
from data.config import DataConfig, TokenizerConfig, ValidationConfig
from data.corpora.chapters import split_chapters
from data.documents import DataError
from data.prepare import prepare
from data.source_config import ChaptersConfig
from data.store import token_store
from tests.data.stores import flip_bit


@pytest.fixture(scope="module")
def config(verse, tmp_path_factory):
    made = DataConfig(
        seq_length=32,
        tokenizer=TokenizerConfig(kind="byte_bpe", vocab_size=400),
        path=str(verse),
        chapters=ChaptersConfig(first=1, last=18),
        validation=ValidationConfig(last_documents=3),
        clean=(),
        directory=str(tmp_path_factory.mktemp("stores")),
    )
    prepare(made)
    return made


@pytest.fixture(scope="module")
def datasets(config):
    return open_datasets(config, seed=1)


@pytest.fixture(scope="module")
def chapters(verse):
    return [chapter.text for chapter in split_chapters(verse.read_text(encoding="utf-8")).all]


def test_the_splits_are_whole_chapters(datasets, chapters):
    """Decoded, the tokens are the text again: chapters 1 to 15 to train on, 16 to 18 held out, 19 and 20 left out."""
    for split, part, wanted in (
        ("train", datasets.train._windows[0]._stream, chapters[:15]),
        ("valid", datasets.valid._stream, chapters[15:18]),
    ):
        ids = part.read(0, part.num_tokens)
        texts = np.split(ids, np.flatnonzero(ids == datasets.tokenizer.eos_id) + 1)[:-1]
        assert [datasets.tokenizer.decode(text[:-1]) for text in texts] == wanted
        assert datasets.manifest["splits"][split]["chars"] == sum(map(len, wanted))


@pytest.mark.parametrize(("num_replicas", "micro_batch"), [(1, 4), (2, 3), (3, 7), (1, 1000)])
def test_validation_scores_every_token_once_on_any_number_of_replicas(datasets, num_replicas, micro_batch):
    per_replica = [list(datasets.valid.batches(replica=r, num_replicas=num_replicas, micro_batch=micro_batch)) for r in range(num_replicas)]

    assert {len(batches) for batches in per_replica} == {datasets.valid.num_batches(num_replicas=num_replicas, micro_batch=micro_batch)}
    assert {tensor.shape for batches in per_replica for pair in batches for tensor in pair} == {(micro_batch, 32)}
    labels = np.concatenate([labels.numpy().ravel() for round_ in zip(*per_replica, strict=True) for _, labels in round_])
    stream = datasets.valid._stream
    np.testing.assert_array_equal(labels[labels != IGNORED_LABEL], stream.read(0, stream.num_tokens))


def test_validation_inputs_are_the_tokens_before_their_labels(datasets):
    batches = list(datasets.valid.batches(replica=0, num_replicas=1, micro_batch=2))
    inputs = np.concatenate([inputs.numpy().ravel() for inputs, _ in batches])
    labels = np.concatenate([labels.numpy().ravel() for _, labels in batches])
    scored = int((labels != IGNORED_LABEL).sum())

    assert inputs[0] == datasets.tokenizer.eos_id
    np.testing.assert_array_equal(inputs[1:scored], labels[: scored - 1])


def test_the_characters_of_what_is_scored_are_counted_exactly(datasets, chapters):
    text = "".join(chapters[15:18])
    assert datasets.valid.num_chars(micro_batch=4) == len(text)

    for count in (1, 2, 5):
        batches = itertools.islice(datasets.valid.batches(replica=0, num_replicas=1, micro_batch=4), count)
        ids = np.concatenate([labels.numpy().ravel() for _, labels in batches])
        # Characters that begin in the scored tokens; a character cut at the end counts, and decodes to one mark.
        begun = len(datasets.tokenizer.decode(ids).rstrip("\ufffd"))
        assert 0 <= datasets.valid.num_chars(micro_batch=4, max_batches=count) - begun <= 1


def test_a_limited_evaluation_is_the_beginning_of_the_whole(datasets):
    limited = list(datasets.valid.batches(replica=0, num_replicas=1, micro_batch=4, max_batches=2))
    whole = list(datasets.valid.batches(replica=0, num_replicas=1, micro_batch=4))

    assert len(limited) == 2
    assert all((a == b).all() for got, wanted in zip(limited, whole, strict=False) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("max_batches", [1, 3, 4])
def test_a_limited_evaluation_scores_the_same_rows_on_any_number_of_replicas(datasets, max_batches):
    scored = {}
    for num_replicas in (1, 2, 3, 5):
        shape = {"num_replicas": num_replicas, "micro_batch": 2, "max_batches": max_batches}
        replicas = [list(datasets.valid.batches(replica=replica, **shape)) for replica in range(num_replicas)]
        assert {len(batches) for batches in replicas} == {datasets.valid.num_batches(**shape)}
        labels = np.concatenate([labels.numpy().ravel() for round_ in zip(*replicas, strict=True) for _, labels in round_])
        scored[num_replicas] = labels[labels != IGNORED_LABEL].tolist()

    assert all(labels == scored[1] for labels in scored.values())
    assert len(scored[1]) == datasets.valid.num_scored(micro_batch=2, max_batches=max_batches) == 2 * max_batches * 32


def test_where_rows_begin_with_documents_validation_rows_do_too_and_every_token_is_scored_once(tmp_path):
    lines = [str(number) * (number % 17 + 1) for number in range(1, 120)]
    (tmp_path / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    config = DataConfig(
        seq_length=24,
        tokenizer=TokenizerConfig(kind="characters"),
        path=str(tmp_path / "lines.txt"),
        text_documents="line",
        clean=(),
        windows="documents",
        validation=ValidationConfig(last_documents=60),
        directory=str(tmp_path / "stores"),
    )
    prepare(config)
    datasets = open_datasets(config, seed=1)
    shape = {"num_replicas": 1, "micro_batch": 4}
    labels = np.concatenate([labels.numpy() for _, labels in datasets.valid.batches(replica=0, **shape)])
    rows = [row[row != IGNORED_LABEL].tolist() for row in labels]

    whole = [token for row in rows for token in row]
    assert datasets.tokenizer.decode(whole) == "".join(lines[-60:])
    assert len(whole) == datasets.valid.num_scored() == datasets.valid.num_tokens
    beginnings = {datasets.tokenizer.encode(line)[0] for line in lines}
    for before, row in itertools.pairwise(row for row in rows if row):
        # Only a document longer than a row goes on in the next.
        assert len(before) == 24 or (before[-1] == datasets.tokenizer.eos_id and row[0] in beginnings)
    limited = datasets.valid.num_scored(micro_batch=4, max_batches=2)
    assert limited == sum(len(row) for row in rows[:8]) < 8 * 24


def test_training_rows_are_windows_of_the_training_text(datasets, chapters):
    text = "".join(chapters[:15])

    for index in range(20):
        row = datasets.tokenizer.decode(datasets.train.sample(index).tolist())
        assert row.strip("\ufffd") in text or datasets.tokenizer.eos_id in datasets.train.sample(index)


def test_a_store_that_was_not_made_is_asked_for_with_the_command(config):
    other = dataclasses.replace(config, tokenizer=TokenizerConfig(kind="byte_bpe", vocab_size=401))

    with pytest.raises(
        DataError, match=r"Make it first: \.venv/bin/python -m data\.prepare some\.json \(verse-\w+ was made with other "
    ) as error:
        open_datasets(other, seed=1, config_path="some.json")
    assert "data.tokenizer.vocab_size.)" in str(error.value)


def test_a_store_under_another_ones_name_is_refused(config, tmp_path):
    here = dataclasses.replace(config, directory=str(tmp_path))
    other = dataclasses.replace(here, tokenizer=TokenizerConfig(kind="byte_bpe", vocab_size=401))
    wanted = prepare(other)
    shutil.rmtree(wanted)
    shutil.copytree(prepare(here), wanted)

    with pytest.raises(DataError, match=r"is not the store that \S+ names: identity \w{12}, wanted \w{12}\. Delete the folder"):
        open_datasets(other, seed=1)


def test_a_store_with_another_tokenizer_inside_is_refused(config, tmp_path):
    """Even where the manifest was made to fit."""
    here = dataclasses.replace(config, directory=str(tmp_path))
    folder = prepare(here)
    manifest = token_store.read_manifest(folder)
    path = folder / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("明", "暗"), encoding="utf-8")
    (folder / "tokenizer" / "vocab.json").unlink()
    token_store.write_manifest(folder, {name: value for name, value in manifest.items() if name not in ("files", "format")})

    with pytest.raises(DataError, match="its tokenizer is not the one its tokens were made with"):
        open_datasets(here, seed=1)


def test_windows_longer_than_the_text_are_refused(config):
    with pytest.raises(DataError, match=r"training tokens are less than one window of data\.seq_length \+ 1 = 1000001"):
        open_datasets(dataclasses.replace(config, seq_length=1_000_000), seed=1)


@pytest.mark.parametrize("name", ["train-00000.bin", "tokenizer/tokenizer.json", "report.json"])
def test_a_store_with_a_flipped_bit_is_refused(config, tmp_path, name):
    copy = dataclasses.replace(config, directory=str(tmp_path))
    flip_bit(prepare(copy) / name, 100)

    with pytest.raises(DataError, match="was changed after it was written"):
        open_datasets(copy, seed=1)
