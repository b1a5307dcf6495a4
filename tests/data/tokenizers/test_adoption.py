"""Tokenizers made elsewhere are taken over with their ids."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from data.config import END_OF_TEXT
from data.documents import DataError
from data.tokenizers import tokenizer_folder
from tests.data.tokenizers.trained import KINDS, PROBES, adopt


@pytest.mark.parametrize("kind", KINDS)
def test_an_existing_folder_or_its_tokenizer_json_gives_the_same_ids(folders, kind, tmp_path):
    wanted = tokenizer_folder.load(folders / kind)

    for number, path in enumerate((folders / kind, folders / kind / "tokenizer.json")):
        got = adopt(path, tmp_path / str(number))
        assert [got.encode(text) for text in PROBES] == [wanted.encode(text) for text in PROBES]
        assert got.eos_id == wanted.eos_id
        assert type(got.fast) is type(wanted.fast)


def test_a_bare_sentencepiece_model_gives_the_same_ids(folders, tmp_path):
    (tmp_path / "bare.model").write_bytes((folders / "sentencepiece_bpe" / "tokenizer.model").read_bytes())

    got = adopt(tmp_path / "bare.model", tmp_path / "out")

    assert got.encode(PROBES[1]) == tokenizer_folder.load(folders / "sentencepiece_bpe").encode(PROBES[1])


def test_a_model_with_a_dummy_prefix_and_normalisation_gives_sentencepieces_own_ids(texts, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    options = {"vocab_size": 480, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("".join(texts).split("，")), model_prefix=str(tmp_path / "bare"), **options
    )
    own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "bare.model"))

    ours = adopt(tmp_path / "bare.model", tmp_path / "out")

    for text in ("ＡＢＣ  春眠不觉晓 ", *PROBES[:1], *texts):
        line = text.split("\n")[0]  # its normalisation of line breaks is another one
        assert ours.encode(line) == own.encode(line)
    assert ours.decode(ours.encode("春眠")) == "春眠"


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("spaces", [{}, {"add_dummy_prefix": False, "remove_extra_whitespaces": False}])
def test_user_defined_symbols_get_sentencepieces_own_ids_wherever_they_stand(model_type, spaces, texts, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    options = {
        "vocab_size": 400 if model_type == "unigram" else 480,
        "model_type": model_type,
        "byte_fallback": True,
        "minloglevel": 2,
        **spaces,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("".join(texts).split("，")),
        model_prefix=str(tmp_path / "bare"),
        user_defined_symbols=["<user>", "明月"],
        **options,
    )
    own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "bare.model"))

    ours = adopt(tmp_path / "bare.model", tmp_path / "out")

    for text in ("举头望明月，低头", "明月光", "春 <user> 眠", "春<user>眠", " <user>春", "明月明月 ", "<user> 明月", ""):
        assert ours.encode(text) == own.encode(text), text


def test_vocab_and_merges_without_a_tokenizer_json_are_enough(folders, tmp_path):
    source = tmp_path / "gpt2"
    source.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (source / name).write_bytes((folders / "byte_bpe" / name).read_bytes())

    assert adopt(source, tmp_path / "out").encode(PROBES[1]) == tokenizer_folder.load(folders / "byte_bpe").encode(PROBES[1])


def test_code_in_a_folder_is_neither_copied_nor_run(folders, tmp_path):
    source = tmp_path / "remote"
    source.mkdir()
    (source / "tokenizer.model").write_bytes((folders / "sentencepiece_bpe" / "tokenizer.model").read_bytes())
    settings = {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}, "tokenizer_class": "Own", "eos_token": END_OF_TEXT}
    (source / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (source / "tokenization_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")

    ours = adopt(source, tmp_path / "out")

    assert AutoTokenizer.from_pretrained(tmp_path / "out")("明月")["input_ids"] == ours.encode("明月")
    assert not (tmp_path / "ran").exists()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


def test_a_tokenizer_that_names_no_end_is_told_by_the_configuration(folders, tmp_path):
    content = json.loads((folders / "characters" / "tokenizer.json").read_text(encoding="utf-8").replace(END_OF_TEXT, "<fin>"))
    (tmp_path / "own.json").write_text(json.dumps(content), encoding="utf-8")

    with pytest.raises(DataError, match="no end-of-text token is named"):
        adopt(tmp_path / "own.json", tmp_path / "a")
    assert adopt(tmp_path / "own.json", tmp_path / "b", eos_token="<fin>").eos_id == 0
    with pytest.raises(DataError, match='"<other>" is not in the vocabulary'):
        adopt(tmp_path / "own.json", tmp_path / "c", eos_token="<other>")
    with pytest.raises(DataError, match=r'begin-of-text token "<other>" is not in the vocabulary\. Name .* data\.tokenizer\.bos_token='):
        adopt(tmp_path / "own.json", tmp_path / "d", eos_token="<fin>", bos_token="<other>")


def test_an_end_that_is_guessed_and_names_that_mean_no_token_are_said(folders, tmp_path, caplog):
    (tmp_path / "tokenizer.json").write_bytes((folders / "characters" / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "[PAD]"}', encoding="utf-8")

    assert adopt(tmp_path, tmp_path / "out").eos_id == 0
    assert f"tokenizer.json does not say which token ends a text: {END_OF_TEXT} is taken" in caplog.text
    assert "not in the vocabulary and left out: pad_token [PAD]" in caplog.text


@pytest.mark.parametrize(
    "model",
    [
        models.WordLevel({"</s>": 0, "明": 1, "<none>": 2}, unk_token="<none>"),
        models.Unigram([("</s>", 0.0), ("明", -1.0), ("<none>", -9.0)], 2, byte_fallback=False),
    ],
)
def test_unknown_characters_are_counted_where_no_file_beside_the_tokenizer_names_their_token(model, tmp_path):
    Tokenizer(model).save(str(tmp_path / "own.json"))

    ours = adopt(tmp_path / "own.json", tmp_path / "out")

    assert ours.unk_id == 2
    assert ours.fallback_ids.tolist() == [2]
    assert ours.chars_per_id.tolist()[1:] == [1, 1]


def test_what_wordpiece_puts_before_the_rest_of_a_word_is_no_character(tmp_path):
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "[SEP]": 1, "play": 2, "##ing": 3}, unk_token="[UNK]"))
    backend.save(str(tmp_path / "tokenizer.json"))

    ours = adopt(tmp_path, tmp_path / "out")

    assert ours.chars_per_id[ours.encode("playing")].sum() == len("playing")


def test_a_tokenizer_that_has_nothing_for_unknown_characters_is_refused_or_said(tmp_path, caplog):
    Tokenizer(models.WordLevel({"</s>": 0, "明": 1}, unk_token="<none>")).save(str(tmp_path / "a.json"))
    Tokenizer(models.BPE({"</s>": 0, "明": 1}, [])).save(str(tmp_path / "b.json"))

    with pytest.raises(DataError, match=r"a\.json: a character that its vocabulary does not have cannot be encoded"):
        adopt(tmp_path / "a.json", tmp_path / "out")
    assert adopt(tmp_path / "b.json", tmp_path / "out").encode("明月") == [1]
    assert "b.json: characters that its vocabulary does not have are left out of the tokens" in caplog.text


@pytest.mark.parametrize(("pre_tokenizer", "is_lost"), [(pre_tokenizers.BertPreTokenizer(), True), (pre_tokenizers.Digits(), False)])
def test_a_tokenizer_that_loses_line_breaks_is_said(pre_tokenizer, is_lost, tmp_path, caplog):
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "[SEP]": 1, "a": 2, "##a": 3, "##\n": 4, "## ": 5}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizer
    backend.save(str(tmp_path / "tokenizer.json"))

    adopt(tmp_path, tmp_path / "out")

    assert ("tokenizer.json: line breaks are lost" in caplog.text) == is_lost


def test_what_is_no_tokenizer_is_refused_by_name(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")

    for path in (tmp_path / "tokenizer.model", tmp_path / "tokenizer.json"):
        with pytest.raises(DataError, match=path.name):
            adopt(path, tmp_path / "out")
    with pytest.raises(DataError, match=r"no tokenizer\.json, tokenizer\.model, or vocab\.json with merges\.txt there"):
        adopt(tmp_path / "nowhere", tmp_path / "out")
