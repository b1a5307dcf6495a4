"""Prompts come from options, files and standard input; texts go to a terminal in order."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from data.config import END_OF_TEXT, TokenizerConfig
from data.tokenizers.trainers import train
from inference.generation.prompts import Display, batches_of, read_prompts
from inference.generation.settings import SamplingParams


def standard_input(monkeypatch: pytest.MonkeyPatch, text: bytes, terminal: bool = False) -> None:
    stream = io.TextIOWrapper(io.BytesIO(text), encoding="utf-8")
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdin", stream)


def test_prompts_of_the_command_line_come_before_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("却说宝玉\n\n黛玉道\r\n", encoding="utf-8")
    assert read_prompts(["话说"], str(file)) == ["话说", "却说宝玉", "黛玉道"]


def test_a_jsonl_file_can_hold_prompts_of_several_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "白日依山尽\\n黄河"}\n{"prompt": "千山", "seed": 2}\n', encoding="utf-8")
    assert read_prompts([], str(file)) == ["白日依山尽\n黄河", "千山"]
    assert capsys.readouterr().err == f"{file}: only the prompts of its objects are used, and not seed.\n"


def test_a_prompt_may_hold_what_only_some_programs_take_for_a_line_break(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "白日\u2028依山\x85尽"}\r\n{"prompt": "千山"}\n', encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("白日\u2028依山\r千山", encoding="utf-8")
    assert read_prompts([], str(tmp_path / "prompts.jsonl")) == ["白日\u2028依山\x85尽", "千山"]
    assert read_prompts([], str(tmp_path / "prompts.txt")) == ["白日\u2028依山", "千山"]


def test_standard_input_is_read_when_it_is_named_or_nothing_else_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    standard_input(monkeypatch, "却说\n黛玉".encode())
    assert read_prompts([], "-") == ["却说", "黛玉"]
    standard_input(monkeypatch, "却说".encode())
    assert read_prompts([], None) == ["却说"]
    standard_input(monkeypatch, "却说".encode())
    assert read_prompts(["宝玉"], None) == ["宝玉"]


def test_nobody_waits_for_a_person_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    standard_input(monkeypatch, b"", terminal=True)
    with pytest.raises(ValueError, match=r"^no prompt\. Give one with --prompt"):
        read_prompts([], None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no prompt"),
        (b"\n \n", "holds no prompt"),
        (b"\xff\xfe\x00", "is not UTF-8 (byte 0)"),
    ],
)
def test_a_file_without_usable_prompts_says_so(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_prompts([], str(file))
    assert message in str(caught.value)


def test_a_line_of_jsonl_that_is_no_prompt_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "好"}\n{"text": "不"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r'prompt 2 is not an object like .*: \{"text": "不"\}'):
        read_prompts([], str(file))


def test_characters_that_the_vocabulary_has_not_are_counted_once_for_all_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(["春眠不觉晓"], TokenizerConfig(kind="characters", vocab_size=20), tmp_path)
    (tmp_path / "config.json").write_text('{"n_positions": 64, "eos_token_id": 0}', encoding="utf-8")
    batches_of(["春☃眠☃", "春☃眠☃", "不觉"], tmp_path, SamplingParams(new_tokens=5), 8)
    said = 'prompt "春☃眠☃": 2 of 4 characters are not in the vocabulary and are read as unknown ones.\n'
    assert capsys.readouterr().err == said


def test_a_beginning_that_is_named_for_unknown_characters_too_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(["春眠不觉晓"], TokenizerConfig(kind="byte_bpe", vocab_size=258), tmp_path)
    path = tmp_path / "tokenizer.json"  # as OPT's folders may say it
    backend = json.loads(path.read_text(encoding="utf-8"))
    backend["model"]["unk_token"] = END_OF_TEXT
    begin = {"id": END_OF_TEXT, "ids": [0], "tokens": [END_OF_TEXT]}
    one, other = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    first = {"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}
    processor = {"type": "TemplateProcessing", "single": [first, one], "pair": [first, one, other], "special_tokens": {END_OF_TEXT: begin}}
    path.write_text(json.dumps(backend | {"post_processor": processor}), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"n_positions": 64, "eos_token_id": 0}', encoding="utf-8")

    (batch,) = batches_of(["春眠"], tmp_path, SamplingParams(new_tokens=5), 8)

    assert batch.tokens[0][0] == 0
    assert capsys.readouterr().err == ""


def test_a_missing_file_an_empty_prompt_and_broken_bytes_are_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.txt: cannot be read"):
        read_prompts([], str(tmp_path / "nowhere.txt"))
    with pytest.raises(ValueError, match="prompt 2 is empty"):
        read_prompts(["却说", " "], None)
    with pytest.raises(ValueError, match="prompt 1 is not UTF-8"):
        read_prompts(["\udce5\udce5"], None)


def test_one_text_is_shown_as_it_grows() -> None:
    out = io.StringIO()
    display = Display(["却说"], out)
    display.add(0, "宝", False)
    assert out.getvalue() == "却说宝"
    display.add(0, "玉", True)
    assert out.getvalue() == "却说宝玉\n"


def test_texts_that_grow_together_are_shown_one_below_the_other() -> None:
    out = io.StringIO()
    display = Display(["一", "二", "三"], out)
    display.add(0, "a", False)
    display.add(1, "b", True)
    display.add(2, "c", False)
    assert out.getvalue() == "[1/3]\n一a"
    display.add(0, "A", True)
    assert out.getvalue() == "[1/3]\n一aA\n\n[2/3]\n二b\n\n[3/3]\n三c"
    display.add(2, "", True)
    assert out.getvalue().endswith("三c\n")


def test_control_characters_do_not_reach_the_terminal() -> None:
    out = io.StringIO()
    Display(["却说"], out).add(0, "\x1b[2J红\x00\r\n\t楼\x9b", True)
    assert out.getvalue() == "却说[2J红\n\t楼\n"
