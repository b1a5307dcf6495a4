"""Tokens made elsewhere: .bin/.idx pairs of other programs."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from data.batches.datasets import open_datasets
from data.config import PackConfig, TokenizerConfig, ValidationConfig
from data.documents import DataError
from data.inspect import find_subject
from data.prepare import prepare
from inference.evaluation.held_out import held_out_texts
from tests.data.stores import flip_bit

IDS = [list(range(5, 25)) * 3, list(range(20)), list(range(30)), list(range(9))]


@pytest.fixture
def theirs(write_as_megatron, make, whole, tmp_path):
    """A pair of another program and the configuration that uses it."""
    write_as_megatron(tmp_path / "theirs", IDS, [0, 1, 2, 3, 4], 8, np.uint16)
    existing = TokenizerConfig(kind="existing", path=str(whole / "tokenizer"))
    validation = ValidationConfig(last_documents=2)
    return make(path=None, chapters=None, store=str(tmp_path / "theirs"), tokenizer=existing, validation=validation)


def test_a_store_of_another_program_is_used_as_it_is(theirs):
    prepare(theirs)
    datasets = open_datasets(theirs, seed=1)

    assert datasets.train._windows[0]._stream.num_tokens == 80
    assert datasets.valid.num_tokens == 39
    assert datasets.valid._stream.read(0, 39).tolist() == IDS[2] + IDS[3]
    assert datasets.valid.num_chars() > 0


@pytest.mark.parametrize(("wrong", "code", "dtype"), [(60000, 8, np.uint16), (-5, 4, np.int32)])
def test_a_store_with_ids_that_the_tokenizer_does_not_have_is_refused(theirs, write_as_megatron, wrong, code, dtype):
    write_as_megatron(Path(theirs.store), [[1, wrong] * 50, [1] * 50, [1]], [0, 1, 2, 3], code, dtype)

    with pytest.raises(DataError, match=rf"holds the id {wrong}, but the tokenizer at .* has 130\. It was made with another tokenizer"):
        prepare(theirs)


@pytest.mark.parametrize("windows", ["stream", "documents"])
def test_text_held_out_of_the_only_document_is_scored_whole(theirs, write_as_megatron, windows):
    write_as_megatron(Path(theirs.store), [list(range(5, 105))], [0, 1], 8, np.uint16)
    config = dataclasses.replace(theirs, validation=ValidationConfig(ratio=0.4), windows=windows)
    folder = prepare(config)
    valid = open_datasets(config, seed=1).valid

    assert (valid.num_tokens, valid.num_rows) == (40, 3)
    labels = np.concatenate([labels.numpy().ravel() for _, labels in valid.batches(replica=0, num_replicas=1, micro_batch=1)])
    assert labels[labels >= 0].tolist() == list(range(65, 105))
    (text,) = held_out_texts(find_subject(folder))
    assert text.starts.tolist() == [0]


def test_keys_that_do_nothing_to_a_finished_store_are_said(theirs, caplog):
    prepare(theirs)
    assert "do nothing" not in caplog.text
    prepare(dataclasses.replace(theirs, clean=(), pack=PackConfig(length=8), shuffle=True))
    assert "theirs: a finished store is read as it is, so these keys do nothing: data.clean, data.shuffle, data.pack" in caplog.text


def test_a_budget_shorter_than_a_window_is_refused_when_the_store_is_made(theirs):
    with pytest.raises(DataError, match=r"theirs: 16 training tokens are less than one window of data\.seq_length \+ 1 = 17"):
        prepare(dataclasses.replace(theirs, max_train_tokens=16))


def test_a_bit_that_has_flipped_on_the_disk_is_noticed_though_no_time_has_changed(theirs):
    prepare(theirs)
    path = Path(f"{theirs.store}.bin")
    flip_bit(path, 4)
    # As the disk does it: what is remembered of the file still fits.
    memory = Path(theirs.directory) / ".hashes.json"
    known = json.loads(memory.read_text(encoding="utf-8"))
    *state, digest = known[str(path.resolve())]
    status = path.stat()
    known[str(path.resolve())] = [*(status.st_size, status.st_mtime_ns, status.st_ctime_ns)[: len(state)], digest]
    memory.write_text(json.dumps(known), encoding="utf-8")

    with pytest.raises(DataError, match=r"theirs\.bin was changed after its store was made"):
        prepare(theirs)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("sizes", [-60, 140, 30, 9], "the size -60 of sequence 0"),
        ("pointers", [0, 120, 160, 210], "sequences that do not lie end to end"),
        ("documents", [0, 3, 2, 3, 4], "documents that do not rise from 0 to 4"),
        ("documents", [0, 1, 2, 3, 5], "documents that do not rise from 0 to 4"),
    ],
)
def test_an_index_that_does_not_fit_itself_is_refused(theirs, place, value, message):
    path = Path(f"{theirs.store}.idx")
    content = bytearray(path.read_bytes())
    offset, kind = {"sizes": (34, np.int32), "pointers": (34 + 16, np.int64), "documents": (34 + 16 + 32, np.int64)}[place]
    made = np.array(value, dtype=kind).tobytes()
    content[offset : offset + len(made)] = made
    path.write_bytes(content)

    with pytest.raises(DataError, match=message):
        prepare(theirs)


def test_no_damage_to_an_index_is_a_traceback(theirs):
    path = Path(f"{theirs.store}.idx")
    whole_index = path.read_bytes()
    draw = np.random.default_rng(0)
    refused = 0
    for number in range(200):
        content = bytearray(whole_index)
        if number % 4:
            content[draw.integers(len(content))] ^= 1 << int(draw.integers(8))
        else:
            del content[int(draw.integers(len(content))) :]
        path.write_bytes(content)
        try:
            prepare(dataclasses.replace(theirs, directory=f"{theirs.directory}/{number}"))
        except DataError:
            refused += 1

    assert refused > 150  # Some flips move the end of a document, which is as good an index as before.
