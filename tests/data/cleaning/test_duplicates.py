"""Exact and near copies are dropped, and nothing else is."""

import csv
import random
import resource
import subprocess
import sys

import numpy as np
import pytest

from data.cleaning import duplicates
from data.cleaning.duplicates import EXACT, KEPT, NEAR, find_duplicates, write_sketches
from data.cleaning.minhash import signatures
from data.cleaning_config import DeduplicateConfig, NearConfig
from data.documents import DataError
from ds_configs import build_section
from tests.data.extra_corpora import EXTRA, needs_extra

FIRST_HASHES = [14878942, 7188430, 3338209]
CONFIG = DeduplicateConfig(near=NearConfig())


def made_up_texts(number, seed=0, num_words=150):
    """Texts that share words, as real ones do, but no passages."""
    draw = random.Random(seed)
    words = ["".join(draw.choices([chr(code) for code in range(0x4E00, 0x5100)], k=draw.choice([1, 2, 2, 3, 4]))) for _ in range(3000)]
    weights = [1 / (rank + 10) for rank in range(len(words))]
    marks = ["", "", "", "", "，", "，", "。", "。\n"]
    return ["".join(word + draw.choice(marks) for word in draw.choices(words, weights, k=num_words)) for _ in range(number)]


def replace_block(text, other, draw):
    size = len(text) // 10
    at = draw.randrange(len(text) - size)
    return text[:at] + other[:size] + text[at + size :]


def replace_scattered(text, other, draw):
    letters = list(text)
    for index in draw.sample(range(len(letters)), len(letters) // 10):
        letters[index] = draw.choice(other)
    return "".join(letters)


def cut_and_append(text, other, draw):
    size = len(text) // 20
    return text[size:] + other[:size]


PLANTS = [replace_block, replace_scattered, cut_and_append]


def reasons(texts, folder, config=CONFIG, pieces=1):
    """What becomes of each text, when they lie in a number of pieces."""
    paths = []
    for index, part in enumerate(np.array_split(np.arange(len(texts)), pieces)):
        paths.append(folder / f"{index}.sketch")
        assert write_sketches(paths[-1], (texts[i] for i in part), config) == len(part)
    return np.concatenate(find_duplicates(paths, config).reasons).tolist()


@pytest.mark.parametrize("plant", PLANTS)
def test_near_copies_that_share_90_percent_are_found_and_nothing_else(plant, tmp_path):
    draw = random.Random(1)
    originals = made_up_texts(400)
    others = made_up_texts(400, seed=7)
    copies = [plant(text, other, draw) for text, other in zip(originals, others, strict=True)]

    found = reasons(originals + copies, tmp_path)

    assert sum(found[:400]) == 0
    assert found[400:].count(NEAR) >= 0.95 * 400


@needs_extra
@pytest.mark.parametrize("plant", PLANTS)
def test_near_copies_of_real_poems_and_prose_are_found_and_few_distinct_ones_dropped(plant, tmp_path):
    draw = random.Random(2)
    novel = next(EXTRA.glob("*120_chapters*.txt")).read_text(encoding="utf-8")
    texts = [novel[at : at + 600] for at in range(0, len(novel) - 600, 600)][:1000]
    with max(EXTRA.glob("poems_*.csv")).open(encoding="utf-8", newline="") as file:
        poems = [row["内容"] for row in csv.DictReader(file)]
    # Some poems are in that file twice, or as variants of each other: what is dropped of them is looked at separately.
    texts += [poem for poem in dict.fromkeys(poems) if len(poem) >= 60][:1000]
    copies = [plant(text, novel[300 * index :], draw) for index, text in enumerate(texts)]

    found = reasons(texts + copies, tmp_path)

    num = len(texts)
    assert num > 1500
    assert sum(reason != KEPT for reason in found[:num]) < 0.005 * num
    assert sum(reason != KEPT for reason in found[num:]) >= 0.95 * num


def test_of_equal_texts_the_first_stays_whatever_white_space_they_have(tmp_path):
    texts = ["甲乙丙丁", "天地玄黄", "甲乙 丙丁\n", "宇宙洪荒", "天地玄黄", "甲乙丙丁"]

    assert reasons(texts, tmp_path, DeduplicateConfig()) == [KEPT, KEPT, EXACT, KEPT, EXACT, EXACT]


def test_texts_that_differ_in_punctuation_and_case_are_near_duplicates(tmp_path):
    assert reasons(["白日依山尽，黄河入海流。Abc", "白日依山尽：黄河入海流！ABC"], tmp_path) == [KEPT, NEAR]


def test_texts_without_letters_are_not_duplicates_of_each_other(tmp_path):
    assert reasons(["。。。", "！？", "……", "。。。"], tmp_path) == [KEPT, KEPT, KEPT, EXACT]


def test_unrelated_english_texts_are_not_near_duplicates_and_changed_copies_are(tmp_path):
    draw = random.Random(5)
    # Words of common syllables, so that texts share most of their letter triples, as English ones do.
    syllables = ["the", "ing", "and", "ion", "ent", "for", "tio", "ere", "her", "ate", "ver", "ter", "tha", "con", "all", "res"]
    words = ["".join(draw.choices(syllables, k=draw.choice([1, 2, 2, 3]))) for _ in range(1500)]
    texts = [" ".join(draw.choices(words, k=400)) for _ in range(100)]
    copies = [replace_block(text, texts[index - 1], draw) for index, text in enumerate(texts)]

    found = reasons(texts + copies, tmp_path)

    assert sum(found[:100]) == 0
    assert found[100:].count(NEAR) >= 95


def test_a_text_longer_than_a_slice_is_compared_in_slices(tmp_path, monkeypatch):
    monkeypatch.setattr("data.cleaning.minhash._SLICE_CHARS", 100)
    text = made_up_texts(1, num_words=400)[0]

    assert reasons([text, replace_block(text, text[::-1], random.Random(0))], tmp_path) == [KEPT, NEAR]


def test_the_result_depends_neither_on_pieces_nor_on_how_much_is_sorted_at_once(tmp_path, monkeypatch):
    draw = random.Random(3)
    texts = made_up_texts(300, num_words=60)
    texts += [replace_block(text, texts[0], draw) for text in texts[:100]] + texts[50:80]
    draw.shuffle(texts)
    whole = reasons(texts, tmp_path)

    monkeypatch.setattr(duplicates, "_SORTED_AT_ONCE", 50)
    monkeypatch.setattr(duplicates, "_CHUNK_DOCUMENTS", 37)
    monkeypatch.setattr(duplicates, "_COMPARED_AT_ONCE", 5)
    monkeypatch.setattr(duplicates, "_BATCH_CHARS", 1000)
    (tmp_path / "again").mkdir()

    assert reasons(texts, tmp_path / "again", pieces=7) == whole
    assert {KEPT, EXACT, NEAR} == set(whole)


def test_sketches_are_the_same_in_every_batch_and_every_process(tmp_path):
    texts = [*made_up_texts(20), "短", "", "。"]

    together = signatures(texts, NearConfig())

    assert np.array_equal(together, np.concatenate([signatures([text], NearConfig()) for text in texts]))
    # Sketches are kept on disk between starts: a change of hash functions must show here.
    assert together[0, :3].tolist() == FIRST_HASHES


def test_the_samples_name_the_document_that_was_left_out_and_the_one_it_resembles(tmp_path):
    texts = made_up_texts(3)
    paths = [tmp_path / "a", tmp_path / "b"]
    write_sketches(paths[0], texts, CONFIG)
    write_sketches(paths[1], ["别的", texts[1], "改" + texts[2][1:]], CONFIG)

    found = find_duplicates(paths, CONFIG)

    assert found.samples == [(EXACT, (1, 1), (0, 1)), (NEAR, (1, 2), (0, 2))]
    assert (found.count(EXACT), found.count(NEAR), found.count(KEPT)) == (1, 1, 4)
    assert [piece.tolist() for piece in found.reasons] == [[0, 0, 0], [0, EXACT, NEAR]]


def test_a_sketch_file_that_was_cut_is_refused(tmp_path):
    write_sketches(tmp_path / "a", ["甲"], CONFIG)
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-1])

    with pytest.raises(DataError, match="no whole number of sketches"):
        find_duplicates([tmp_path / "a"], CONFIG)


def test_an_empty_corpus_and_an_empty_piece_have_no_duplicates(tmp_path):
    assert reasons([], tmp_path) == []
    assert reasons(["甲"], tmp_path, pieces=3) == [KEPT]


@pytest.mark.parametrize("values", [{"bands": 0}, {"rows": 33}, {"ngram": 0}, {"min_similarity": 0.0}])
def test_values_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        build_section(DeduplicateConfig, {"near": values}, "data.deduplicate", "run.json")


@pytest.mark.slow
def test_five_million_documents_are_compared_in_less_than_a_gigabyte(tmp_path):
    config = DeduplicateConfig(near=NearConfig(bands=4, rows=2))  # Memory does not depend on the bands, the time does.
    noise = np.random.default_rng(0)
    for piece in range(10):
        (tmp_path / f"{piece}").write_bytes(noise.bytes(500_000 * config.bytes_per_document))
    code = (
        "import sys; from pathlib import Path; from data.cleaning.duplicates import *; from data.cleaning.minhash import NearConfig\n"
        "config = DeduplicateConfig(near=NearConfig(bands=4, rows=2))\n"
        "found = find_duplicates(sorted(Path(sys.argv[1]).iterdir()), config)\n"
        "import resource; print(found.count(KEPT), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)"
    )
    limit = 1 << 30
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    kept, peak_mib = map(int, result.stdout.split())

    assert kept == 5_000_000
    assert peak_mib < 1024
