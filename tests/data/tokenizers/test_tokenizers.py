"""Tokenizers that are trained here: their files, their ids and the fast ways to them."""

import contextlib
import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest
from transformers import AutoTokenizer

from data.config import END_OF_TEXT, DataConfig, TokenizerConfig
from data.documents import DataError
from data.prepare import prepare
from data.tokenizers import tokenizer_folder, trainers
from data.tokenizers.encoders import CharacterEncoder, GigatokenEncoder, OtherIds, reference_encoder
from tests.data.tokenizers.trained import KINDS, PROBES, adopt


def test_training_twice_gives_the_same_files(folder, texts, tmp_path):
    config = TokenizerConfig(kind=folder.name, vocab_size=KINDS[folder.name])
    trainers.train(texts, config, tmp_path / "again")

    assert tokenizer_folder.fingerprint(tmp_path / "again") == tokenizer_folder.fingerprint(folder)


@pytest.mark.parametrize(
    ("kind", "num_chars", "said"), [("byte_bpe", 10**9, True), ("byte_bpe", 10**6, False), ("characters", 10**9, False)]
)
def test_what_a_large_training_takes_is_said(texts, tmp_path, caplog, kind, num_chars, said):
    caplog.set_level(logging.INFO)
    # Of so many characters these texts are a sample of one; whatever it is, it is too little for the vocabulary.
    with contextlib.suppress(DataError):
        trainers.train(texts, TokenizerConfig(kind=kind, vocab_size=300), tmp_path, num_chars)
    line = "a byte_bpe of 50000000 characters takes up to 12 GiB of memory and 8 minutes; data.tokenizer.training_chars bounds both"
    assert (line in caplog.text) == said


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json"])
def test_a_file_that_cannot_be_written_is_an_error_of_the_system(texts, name, tmp_path):
    (tmp_path / name).mkdir()

    with pytest.raises(OSError, match="Is a directory"):
        trainers.train(texts, TokenizerConfig(kind="byte_bpe", vocab_size=KINDS["byte_bpe"]), tmp_path)


def test_autotokenizer_gives_the_same_ids(folder):
    ours, theirs = tokenizer_folder.load(folder), AutoTokenizer.from_pretrained(folder)

    for text in PROBES:
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    assert theirs.eos_token_id == ours.eos_id


def test_known_text_comes_back_as_it_was(folder):
    ours = tokenizer_folder.load(folder)

    assert ours.decode(ours.encode(PROBES[0])) == PROBES[0]


@pytest.mark.parametrize("kind", ["byte_bpe", "sentencepiece_bpe", "sentencepiece_unigram"])
def test_any_text_comes_back_where_bytes_stand_in_for_unknown_characters(folders, kind):
    ours = tokenizer_folder.load(folders / kind)

    for text in PROBES:
        assert ours.decode(ours.encode(text)) == text


def test_the_fast_encoder_gives_the_ids_of_the_reference(folder, texts):
    ours = tokenizer_folder.load(folder)

    for batch in (PROBES, texts, [], [""]):
        for got, wanted in zip(ours.fast(batch), ours.reference(batch), strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_characters_are_looked_up_in_a_table(folders):
    assert isinstance(tokenizer_folder.load(folders / "characters").fast, CharacterEncoder)


def test_characters_are_counted_by_their_tokens(folder):
    ours = tokenizer_folder.load(folder)

    for text in PROBES:
        assert ours.chars_per_id[ours.encode(text)].sum() == len(text)
    assert ours.chars_before == 0


def test_a_text_that_spells_out_a_special_token_is_only_a_text(folder):
    ours = tokenizer_folder.load(folder)
    text = f"甲{END_OF_TEXT}乙"

    assert ours.eos_id not in ours.encode(text)
    assert ours.eos_id not in ours.fast([text])[0]
    assert ours.eos_id not in AutoTokenizer.from_pretrained(folder)(text)["input_ids"]


def test_only_text_without_a_token_of_its_own_counts_as_fallback(folders):
    for kind in ("characters", "sentencepiece_bpe"):
        ours = tokenizer_folder.load(folders / kind)
        assert not np.isin(ours.encode("明月"), ours.fallback_ids).any()
        assert np.isin(ours.encode("龘"), ours.fallback_ids).all()
    assert not np.isin(ours.encode("\n"), ours.fallback_ids).any()  # A whole character, which sentencepiece writes as its byte.


def test_an_end_of_text_that_is_named_for_unknown_characters_too_is_none(folders, tmp_path):
    shutil.copytree(folders / "byte_bpe", tmp_path / "copy")
    path = tmp_path / "copy" / "tokenizer_config.json"  # as GPT-2's and OPT's folders say it
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "unk_token": END_OF_TEXT}), encoding="utf-8")
    ours = tokenizer_folder.load(tmp_path / "copy")

    assert ours.chars_per_id[ours.eos_id] == 0
    assert ours.eos_id not in ours.fallback_ids


def test_rare_characters_make_room_for_frequent_ones(texts, tmp_path):
    trainers.train(texts, TokenizerConfig(kind="characters", vocab_size=20), tmp_path / "few")
    ours = tokenizer_folder.load(tmp_path / "few")

    assert ours.vocab_size == 20
    assert ours.unk_id not in ours.encode("，")
    assert ours.encode("龘") == [ours.unk_id]


@pytest.mark.parametrize("kind", ["byte_bpe", "sentencepiece_bpe", "sentencepiece_unigram"])
def test_a_vocabulary_too_large_for_the_text_is_refused_with_what_would_do(kind, tmp_path):
    with pytest.raises(DataError, match=r"vocab_size = 5000 does not fit .* only enough for \d+ tokens"):
        trainers.train(["春眠不觉晓，处处闻啼鸟。"] * 3, TokenizerConfig(kind=kind, vocab_size=5000), tmp_path / "out")


def test_a_vocabulary_too_small_for_the_characters_is_refused(texts, tmp_path):
    with pytest.raises(DataError, match="its characters and the 256 bytes alone need more"):
        trainers.train(texts, TokenizerConfig(kind="sentencepiece_bpe", vocab_size=300), tmp_path / "out")


def test_a_sentencepiece_model_gives_sentencepieces_own_ids(folders, texts):
    sentencepiece = pytest.importorskip("sentencepiece")
    for kind in ("sentencepiece_bpe", "sentencepiece_unigram"):
        own = sentencepiece.SentencePieceProcessor(model_file=str(folders / kind / "tokenizer.model"))
        ours = tokenizer_folder.load(folders / kind)
        for text in (*texts, f"明{END_OF_TEXT}月<unk>光<0x41><<0x0A>"):
            assert own.encode(text) == ours.encode(text)


def gigatoken_for_another(folders):
    """The fast encoder with the file of a tokenizer that differs only in one rare character."""
    pytest.importorskip("gigatoken")
    import tokenizers

    path = folders / "byte_bpe" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    # Two bytes that only 龘 has in these texts change places.
    one, other = (letter for letter, byte in zip("é¾ĺ", "龘".encode(), strict=True) if letter in vocabulary and byte != 0xE9)
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    return GigatokenEncoder(json.dumps(content), reference_encoder(tokenizers.Tokenizer.from_file(str(path))))


def test_a_single_text_with_a_new_character_is_enough_to_find_an_encoder_out(folders):
    encoder = gigatoken_for_another(folders)
    texts = ["ab cd"] * 1000
    encoder(texts)

    with pytest.raises(OtherIds):
        encoder([*texts, "龘", *texts])


@pytest.mark.parametrize("kind", ["byte_bpe", "sentencepiece_bpe"])
def test_bpe_is_encoded_by_gigatoken_where_it_is_installed(folders, kind, tmp_path):
    """As docs/data.md says; and the same kind of tokenizer taken over from elsewhere."""
    pytest.importorskip("gigatoken")
    adopt(folders / kind / "tokenizer.json", tmp_path / "adopted")

    assert isinstance(tokenizer_folder.load(folders / kind).fast, GigatokenEncoder)
    assert isinstance(tokenizer_folder.load(tmp_path / "adopted").fast, GigatokenEncoder)


def test_a_part_that_was_begun_with_an_encoder_that_disagrees_is_done_again_as_a_whole(folders, tmp_path, monkeypatch, caplog):
    lines = [f"第{number}行 ab cd" for number in range(300)] + ["龘"] + [f"第{number}行 ab cd" for number in range(300)]
    (tmp_path / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    settings = DataConfig(
        seq_length=8,
        tokenizer=TokenizerConfig(kind="existing", path=str(folders / "byte_bpe")),
        path=str(tmp_path / "lines.txt"),
        text_documents="line",
        clean=(),
        directory=str(tmp_path / "right"),
    )
    right = prepare(settings)

    monkeypatch.setattr("data.tokenizers.tokenizer_folder.fastest", lambda folder, backend: gigatoken_for_another(folders))
    other = prepare(dataclasses.replace(settings, directory=str(tmp_path / "other")))

    assert "this part is done again without it" in caplog.text
    assert (other / "train-00000.bin").read_bytes() == (right / "train-00000.bin").read_bytes()
    assert json.loads((other / "report.json").read_text(encoding="utf-8"))["shards_without_gigatoken"] == 1
