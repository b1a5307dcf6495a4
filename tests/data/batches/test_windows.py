"""Rows cut from the token stream: every token once an epoch, in an order that seed and number decide."""

import itertools
import resource

import numpy as np
import pytest

from data.batches.token_stream import Stream
from data.batches.windows import DocumentWindows, StreamWindows, TrainingSet, window_starts
from data.store import token_store
from ds_configs.atomic_files import allow_open_files


def make_stream(folder, documents, num_shards=1):
    """Shards of documents whose ids count through."""
    parts = np.array_split(np.arange(len(documents)), num_shards)
    shards = []
    number = 0
    for index, part in enumerate(parts):
        with token_store.ShardWriter(folder / f"{index:05d}", vocab_size=1 << 16) as writer:
            for document in part:
                writer.add(np.arange(number, number + documents[document]))
                number += documents[document]
        shards.append(token_store.Shard(folder / f"{index:05d}"))
    return Stream(shards)


@pytest.fixture
def stream(tmp_path):
    return make_stream(tmp_path, [37, 5, 110, 1, 48], num_shards=3)


def training_set(stream, seq_length=10, seed=7, tail="drop"):
    return TrainingSet([StreamWindows(stream, seq_length, seed, tail)], [1.0], seed)


def take(batches, count):
    return [np.concatenate([inputs.numpy(), labels.numpy()[:, -1:]], axis=1) for inputs, labels in itertools.islice(batches, count)]


def test_a_stream_reads_across_its_shards(stream):
    assert stream.num_tokens == 201
    assert stream.read(30, 150).tolist() == list(range(30, 180))


def test_nothing_is_read_of_a_document_without_tokens(stream):
    assert stream.read(30, 0).tolist() == []


def test_a_stream_goes_on_at_its_beginning(stream):
    assert stream.read(199, 4).tolist() == [199, 200, 0, 1]


def test_part_of_a_stream_is_a_stream(tmp_path):
    shard = make_stream(tmp_path, [50, 50])._shards[0]
    part = Stream([shard], 20, 70)

    assert part.read(45, 10).tolist() == [65, 66, 67, 68, 69, 20, 21, 22, 23, 24]
    assert part.document_starts().tolist() == [0, 30]


def test_a_store_of_many_shards_gets_the_open_files_it_needs():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    try:
        allow_open_files(200, "a store")
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 400
        with pytest.raises(ValueError, match=r"a store needs \d+ open files, the limit is \d+\. Raise it .*, or make it smaller\."):
            allow_open_files(hard, "a store", ", or make it smaller")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("tail", ["drop", "wrap"])
def test_an_epoch_holds_every_window_once_and_the_next_cuts_elsewhere(stream, tail):
    samples = training_set(stream, tail=tail)
    epochs = [sorted(int(samples.sample(e * samples.samples_per_epoch + i)[0]) for i in range(samples.samples_per_epoch)) for e in range(5)]

    for starts in epochs:
        gaps = np.diff(starts)
        assert len(set(starts)) == samples.samples_per_epoch
        assert (gaps == 10).sum() >= len(gaps) - 2  # A wrapped epoch is uneven where it begins, ends, and the stream does.
    assert len({tuple(starts) for starts in epochs}) > 1


def test_a_dropped_tail_never_joins_the_end_to_the_beginning(stream):
    samples = training_set(stream)

    for index in range(5 * samples.samples_per_epoch):
        np.testing.assert_array_equal(np.diff(samples.sample(index)), 1)


@pytest.mark.parametrize("num_tokens", [200, 201, 209])
def test_a_wrapped_epoch_leaves_out_nothing(num_tokens, tmp_path):
    samples = training_set(make_stream(tmp_path, [num_tokens]), tail="wrap")

    labels = np.concatenate([samples.sample(index)[1:] for index in range(samples.samples_per_epoch)])

    assert set(labels.tolist()) == set(range(num_tokens))
    assert len(labels) - num_tokens < 10  # Only the last window goes on with the first tokens.


def test_the_seed_decides_the_order(stream):
    first, again, other = (
        [training_set(stream, seed=seed).sample(index).tolist() for index in range(15)] for seed in (1, 1, 2)
    )  # fmt: skip

    assert first == again != other


@pytest.mark.parametrize("num_replicas", [2, 3, 4])
def test_any_number_of_replicas_reads_the_same_samples(stream, num_replicas):
    samples = training_set(stream)
    wanted = [samples.sample(index) for index in range(5, 5 + 12 * num_replicas)]

    replicas = [take(samples.batches(start_sample=5, replica=r, num_replicas=num_replicas, micro_batch=3), 4) for r in range(num_replicas)]
    got = [row for k in range(4) for r in range(num_replicas) for row in replicas[r][k]]

    np.testing.assert_array_equal(got, wanted)


def test_reading_resumes_at_any_sample(stream):
    samples = training_set(stream)
    whole = take(samples.batches(start_sample=0, replica=0, num_replicas=1, micro_batch=1), 60)

    for start in (1, 17, 18, 19, 59):
        (resumed,) = take(samples.batches(start_sample=start, replica=0, num_replicas=1, micro_batch=1), 1)
        np.testing.assert_array_equal(resumed, whole[start])


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_samples_that_are_left_out_are_read_by_no_replica_and_the_others_in_order(stream, num_replicas):
    samples = training_set(stream)
    left_out = [(3, 7), (10, 11)]  # The second begins inside a micro-batch.
    wanted = [samples.sample(index) for index in range(40) if not any(first <= index < end for first, end in left_out)]

    shape = {"num_replicas": num_replicas, "micro_batch": 2, "skipped": left_out}
    replicas = [take(samples.batches(start_sample=2, replica=r, **shape), 6) for r in range(num_replicas)]
    got = [row for k in range(6) for r in range(num_replicas) for row in replicas[r][k]]

    np.testing.assert_array_equal(got, wanted[2 : 2 + len(got)])


def test_labels_are_inputs_one_token_later(stream):
    inputs, labels = next(training_set(stream).batches(start_sample=0, replica=0, num_replicas=1, micro_batch=4))

    assert inputs.shape == labels.shape == (4, 10)
    assert str(inputs.dtype) == str(labels.dtype) == "torch.int64"
    np.testing.assert_array_equal(inputs[:, 1:], labels[:, :-1])


def test_a_text_of_a_single_window_is_enough(tmp_path):
    samples = training_set(make_stream(tmp_path, [11]))

    assert samples.samples_per_epoch == 1
    assert samples.sample(3).tolist() == list(range(11))


def test_document_windows_begin_with_documents(stream):
    windows = DocumentWindows(stream, 10, seed=1)
    starts = {int(windows.read(index)[0]) for index in range(windows.per_epoch)}

    # Documents begin at 0, 37, 42, 152 and 153. The one at 37 is cut by the window that begins at 30, the one at 42 by that at 37;
    # the one at 152 ends with the window that begins at 142.
    assert starts == {0, 10, 20, 30, 37, *range(42, 152, 10), *range(153, 201, 10)}


@pytest.mark.parametrize("seed", range(5))
def test_document_windows_show_every_token(seed):
    draw = np.random.default_rng(seed)
    sizes = draw.integers(1, 40, 60)
    starts = np.cumsum(sizes) - sizes
    total = int(sizes.sum())

    windows = window_starts(starts, total, 16)

    seen = np.zeros(total + 17, dtype=bool)
    for start in windows:
        seen[start : start + 17] = True
    assert seen[:total].all()
    # A window that does not begin with a document goes on where a longer one was cut.
    assert all(start in starts or start - 16 in windows for start in windows.tolist())


def test_weights_mix_streams_as_asked(tmp_path):
    (tmp_path / "b").mkdir()
    small, large = make_stream(tmp_path, [200]), make_stream(tmp_path / "b", [5000])
    windows = [StreamWindows(small, 10, 1, "drop"), StreamWindows(large, 10, 2, "drop")]

    samples = TrainingSet(windows, [3, 1], seed=4)
    rows = np.array([samples.sample(index) for index in range(4000)])

    from_large = rows.max(axis=1) >= 200
    # Exactly a quarter of every thousand, but for windows of the large stream that lie in its first 200 ids.
    assert 0.23 < from_large.mean() <= 0.25
    assert 230 < from_large[:1000].sum() <= 250


def test_a_mixture_resumes_at_any_sample_and_uses_every_window_of_a_stream_once_an_epoch(tmp_path):
    (tmp_path / "b").mkdir()
    windows = [StreamWindows(make_stream(tmp_path, [2001]), 10, 1, "wrap"), StreamWindows(make_stream(tmp_path / "b", [61]), 10, 2, "wrap")]
    samples = TrainingSet(windows, [0.2, 0.8], seed=4)

    rows = [samples.sample(index) for index in range(1000)]
    first = [int(row[1]) for row in rows if row.max() > 61]

    assert len(set(first)) == len(first)  # 200 samples of 200 windows
    np.testing.assert_array_equal(samples.sample(777), rows[777])
