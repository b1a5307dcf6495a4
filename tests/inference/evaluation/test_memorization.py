"""What is copied from the training text, held against a scan of all of it."""

from __future__ import annotations

import json
import logging
import random
import time
from pathlib import Path

import numpy as np
import pytest

from data.documents import DataError
from data.inspect import find_subject
from inference.evaluation.memorization import CorpusIndex, Facts, sort_suffixes
from inference.evaluation.training_text import find_training_text, open_index
from tests.conftest import LINES

# Few letters make many repetitions; one of them is no letter of 16 bits.
ALPHABET = "ab宝𠀀"


def index_of(texts: list[str]) -> CorpusIndex:
    """An index of documents at hand."""
    starts = [sum(len(text) + 1 for text in texts[:number]) for number in range(len(texts))]
    text = "\0".join(texts)
    documents = np.array([(start, number, 0) for number, start in enumerate(starts)])
    return CorpusIndex(text, documents, ["given"], Facts("", len(text), len(texts), len(text), len(text)), sort_suffixes(text))


def scan(texts: list[str], query: str) -> list[int]:
    """The longest match at every character, by looking for every passage in every text."""
    return [
        max(size for size in range(len(query) - start + 1) if any(query[start : start + size] in text for text in texts))
        for start in range(len(query))
    ]


@pytest.mark.parametrize("seed", range(200))
def test_matches_are_those_of_a_scan(seed: int) -> None:
    draw = random.Random(seed)
    texts = ["".join(draw.choices(ALPHABET, k=draw.randint(0, 40))) for _ in range(draw.randint(1, 4))]
    query = "".join(draw.choices(ALPHABET + "c\0", k=draw.randint(0, 30)))
    index = index_of(texts)
    text = index.text
    assert index.order.tolist() == sorted(range(len(text)), key=lambda place: text[place:])

    lengths, places = index.longest_matches(query)
    assert lengths.tolist() == scan(texts, query)
    found = [text[place : place + length] for place, length in zip(places, lengths, strict=True)]
    assert found == [query[start : start + length] for start, length in enumerate(lengths)]


@pytest.mark.parametrize("seed", range(50))
def test_shares_and_spans_are_those_of_a_scan(seed: int) -> None:
    draw = random.Random(seed)
    texts = ["".join(draw.choices(ALPHABET, k=60)) for _ in range(2)]
    query = "".join(draw.choices(ALPHABET, k=40)) + texts[1][10:30]
    copied = index_of(texts).measure(query, ngram_size=4, min_span=6)

    lengths = scan(texts, query)
    ngrams = [query[start : start + 4] for start in range(len(query) - 3)]
    assert copied.longest_run == max(lengths) >= 20
    assert copied.ngram_share == sum(any(ngram in text for text in texts) for ngram in ngrams) / len(ngrams)
    covered = {place for start, length in enumerate(lengths) if length >= 6 for place in range(start, start + length)}
    assert [place for span in copied.spans for place in range(span.start, span.end)] == sorted(covered), "no two spans overlap"
    assert copied.copied_share == len(covered) / len(query)


def test_a_long_repetition_is_sorted_too() -> None:
    assert sort_suffixes("a" * 5000).tolist() == list(range(4999, -1, -1))


def test_ten_thousand_characters_against_six_hundred_thousand_take_under_two_seconds() -> None:
    """Measured: 0.1 s on one core for texts of every kind; the limit is the promise, twenty times that."""
    draw = random.Random(0)
    corpus = "，".join(draw.choice(LINES) + draw.choice(LINES) for _ in range(55_000))[:600_000]
    index = index_of([corpus])
    starts = [draw.randrange(590_000) for _ in range(40)]
    for query in (corpus[5:10_005], "".join(corpus[start : start + 250] for start in starts), "".join(draw.sample(corpus, 10_000))):
        begun = time.process_time()  # Of this process alone: other work on the machine does not count.
        index.measure(query)
        assert time.process_time() - begun < 2


def test_an_empty_text_and_a_short_one_have_no_shares() -> None:
    index = index_of(["床前明月光"])
    empty, short = index.measure(""), index.measure("明月")
    assert (empty.longest_run, empty.ngram_share, empty.copied_share, empty.spans) == (0, None, None, ())
    assert (short.longest_run, short.ngram_share, short.copied_share) == (2, None, 0)


def test_the_index_of_a_store_holds_the_training_text_and_names_its_documents(store: Path, verse: Path) -> None:
    lines = verse.read_text(encoding="utf-8").splitlines()
    index = open_index(find_subject(store))
    assert index.text.split("\0") == lines[:-4], "the last four documents were held out"
    copied = index.measure("不在书里" + lines[3][100:160], min_span=20)
    (span,) = copied.spans
    assert (span.start, span.end) == (4, 64)
    assert span.source == f"verse, document 3: {lines[3][:40]}"


def test_an_index_is_made_once_and_again_when_it_is_damaged(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    subject = find_subject(store)
    first = open_index(subject)
    caplog.clear()
    assert open_index(subject).order.tolist() == first.order.tolist()
    assert caplog.text == ""
    (folder,) = (store.parent / "indexes").glob(f"{store.name}-train-*")
    (folder / "text.txt").write_text("短", encoding="utf-8")
    assert open_index(subject).text == first.text
    assert "is not the index of this store and is made again" in caplog.text


def test_of_a_text_beyond_the_limit_passages_are_taken_and_it_is_said(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = open_index(find_subject(store), max_chars=5000)
    assert index.facts.characters == pytest.approx(5000, rel=0.1)  # as many tokens as make about so many characters
    assert index.facts.tokens / index.facts.tokens_of_split == pytest.approx(5000 / 20_000, rel=0.3)
    assert "of the tokens of the train split; what is copied from the rest is not seen" in caplog.text
    whole = open_index(find_subject(store))
    assert all(passage.strip("�") in whole.text for passage in index.text.split("\0")), "cut between bytes of a character at most"


def test_a_folder_that_does_not_say_its_text_is_refused(tmp_path: Path) -> None:
    for text in (None, "x", {}, {"identity": "0123"}, {"identity": "0123", "store": 5}):
        (tmp_path / "export.json").write_text(json.dumps({"text": text}), encoding="utf-8")
        with pytest.raises(DataError, match="does not say which text"):
            find_training_text(tmp_path)
    (tmp_path / "export.json").write_text('{"text": {"store": "gone-0123", "identity": "0123"}}', encoding="utf-8")
    with pytest.raises(DataError, match="the store gone-0123, is not in data/stores"):
        find_training_text(tmp_path)
