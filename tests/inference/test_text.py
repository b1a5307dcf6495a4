"""Text that arrives token by token is whole characters at every moment."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
import tokenizers

from data.config import TokenizerConfig
from data.tokenizers import tokenizer_folder
from data.tokenizers.trainers import train
from inference.generation.stopping import Stops
from inference.generation.text import BROKEN, FolderTokenizer, GrowingText
from training.checkpoints.find_and_verify import CheckpointError

PROMPT = "床前明月光，"


def tokenizer_of(
    folder: Path, verse: Path, kind: Literal["byte_bpe", "characters", "sentencepiece_bpe"], size: int | None
) -> FolderTokenizer:
    train(verse.read_text(encoding="utf-8").splitlines(), TokenizerConfig(kind=kind, vocab_size=size), folder)
    return FolderTokenizer(folder)


@pytest.fixture(scope="module")
def byte_bpe(tmp_path_factory: pytest.TempPathFactory, verse: Path) -> FolderTokenizer:
    return tokenizer_of(tmp_path_factory.mktemp("tokenizer") / "bytes", verse, "byte_bpe", 300)


def stream(tokenizer: FolderTokenizer, ids: Sequence[int]) -> list[str]:
    """What comes out with each token, and at the end."""
    growing = GrowingText(tokenizer, tokenizer.encode(PROMPT), Stops())
    return [*(growing.push(token) for token in ids), growing.close("length")]


def test_a_character_of_several_tokens_comes_out_with_the_last_of_them(byte_bpe: FolderTokenizer) -> None:
    ids = byte_bpe.encode("𠮷")  # four bytes that no merge of this tokenizer joins
    assert len(ids) == 4
    assert stream(byte_bpe, ids) == ["", "", "", "𠮷", ""]


def test_random_bytes_never_show_as_broken_characters(byte_bpe: FolderTokenizer) -> None:
    draw = random.Random(0)
    usable = sorted(byte_bpe.usable_ids)
    prompt = byte_bpe.encode(PROMPT)
    for _ in range(200):
        ids = [draw.choice(usable) for _ in range(40)]
        pieces = stream(byte_bpe, ids)
        assert BROKEN not in "".join(pieces)
        whole = byte_bpe.decode(prompt + ids).removeprefix(PROMPT)
        assert "".join(pieces) == whole.replace(BROKEN, "")


def test_a_text_that_stops_inside_a_character_ends_before_it(byte_bpe: FolderTokenizer) -> None:
    assert "".join(stream(byte_bpe, byte_bpe.encode("月𠮷")[:-1])) == "月"


@pytest.mark.parametrize("kind", ["byte_bpe", "sentencepiece_bpe"])
def test_a_character_that_the_prompt_begins_is_written_whole(
    tmp_path: Path, verse: Path, kind: Literal["byte_bpe", "sentencepiece_bpe"]
) -> None:
    tokenizer = tokenizer_of(tmp_path / kind, verse, kind, 400)
    text = "月𠮷鑫犇疑是"  # the vocabularies have some of them as bytes only
    ids = tokenizer.encode(text)
    assert len(ids) > len(text) + 6
    for cut in range(len(ids) + 1):
        growing = GrowingText(tokenizer, ids[:cut], Stops())
        pieces = [*(growing.push(token) for token in ids[cut:]), growing.close("length")]
        assert growing.given + "".join(pieces) == text
        assert all(BROKEN not in piece for piece in (growing.given, *pieces))


def test_a_prompt_that_ends_inside_a_token_of_two_characters_tells_the_first_of_them(verse: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, verse, "byte_bpe", 300)
    backend = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    first, second = (tokenizer.encode(letter) for letter in "𠮷鑫")
    bytes_of = {index: word for word, index in backend["model"]["vocab"].items()}
    # A token that ends one character and begins the next, as merges of a larger vocabulary are.
    backend["model"]["vocab"][bytes_of[first[-1]] + bytes_of[second[0]]] = 300
    backend["model"]["merges"].append([bytes_of[first[-1]], bytes_of[second[0]]])
    (tmp_path / "tokenizer.json").write_text(json.dumps(backend), encoding="utf-8")
    growing = GrowingText(FolderTokenizer(tmp_path), [*first[:-1], 300], Stops())
    assert (growing.given, "".join(growing.push(token) for token in second[1:])) == ("𠮷", "鑫")


def test_a_token_is_spelled_with_its_space_where_a_decoder_takes_that_of_the_first(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"▁a": 0, "b": 1, "<0xE5>": 2}, [], byte_fallback=True))
    steps = [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    backend.decoder = tokenizers.decoders.Sequence([*steps, tokenizers.decoders.Strip(" ", 1, 0)])  # Llama's
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = FolderTokenizer(tmp_path)
    assert tokenizer.decode([0, 1, 0]) == "ab a"
    assert [tokenizer.spell(token) for token in range(3)] == [" a", "b", "token:2"]


@pytest.mark.parametrize(("kind", "size"), [("characters", None), ("sentencepiece_bpe", 400)])
def test_other_tokenizers_stream_the_text_they_encode(
    tmp_path: Path, verse: Path, kind: Literal["characters", "sentencepiece_bpe"], size: int | None
) -> None:
    tokenizer = tokenizer_of(tmp_path / kind, verse, kind, size)
    text = "疑是地上霜，举头望明月"
    ids = tokenizer.encode(text)
    assert "".join(stream(tokenizer, ids)) == text


def test_an_end_of_text_token_ends_what_is_written_and_not_what_is_given(tmp_path: Path, verse: Path) -> None:
    tokenizer = tokenizer_of(tmp_path / "characters", verse, "characters", None)
    ids = tokenizer.encode("疑是，地上霜")
    tokenizer.eos_ids = (ids[2],)
    written, given = (GrowingText(tokenizer, [], Stops()) for _ in range(2))
    for token in ids[:3]:
        written.push(token)
    for token in ids:
        given.add(token)
    assert (written.text, written.finish_reason) == ("疑是", "end_of_text")
    assert (given.text, given.finish_reason) == ("疑是，地上霜", None)


def test_special_tokens_are_not_for_writing_except_the_end(byte_bpe: FolderTokenizer, verse: Path, tmp_path: Path) -> None:
    assert byte_bpe.eos_ids == ()  # no model beside this tokenizer that says which token ends a text
    assert byte_bpe.usable_ids == frozenset(range(1, 300))
    (tmp_path / "hf").mkdir()
    train([verse.read_text(encoding="utf-8")], TokenizerConfig(kind="byte_bpe", vocab_size=300), tmp_path / "hf")
    (tmp_path / "hf" / "generation_config.json").write_text('{"eos_token_id": 0}', encoding="utf-8")
    assert FolderTokenizer(tmp_path / "hf").usable_ids == frozenset(range(300))


def test_a_text_is_neither_cut_nor_padded_as_the_folder_has_batches(verse: Path, tmp_path: Path) -> None:
    literal = tokenizer_of(tmp_path, verse, "byte_bpe", 300)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "tokenizer.json"))
    ids = literal.encode(PROMPT)
    assert len(ids) > 4
    assert FolderTokenizer(tmp_path).encode(PROMPT) == tokenizer_folder.load(tmp_path).encode(PROMPT) == ids


def test_a_damaged_file_does_not_take_the_end_of_the_text_away(verse: Path, tmp_path: Path) -> None:
    tokenizer_of(tmp_path, verse, "byte_bpe", 300)
    for name in ("generation_config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text('{"eos_token_id": 0,}', encoding="utf-8")
        with pytest.raises(ValueError, match=f"{name}: unreadable"):
            FolderTokenizer(tmp_path)
        (tmp_path / name).unlink()


def test_an_end_of_text_that_is_no_id_is_refused(verse: Path, tmp_path: Path) -> None:
    tokenizer_of(tmp_path, verse, "byte_bpe", 300)
    (tmp_path / "config.json").write_text('{"eos_token_id": ["</s>"]}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r'its eos_token_id is \["</s>"\]; it must be the id of a token'):
        FolderTokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        FolderTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        FolderTokenizer(tmp_path)
