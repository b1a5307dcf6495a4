"""JSON files of any size are read item by item, and what is broken costs itself only."""

import contextlib
import io
import json
import random
import subprocess
import sys

import pytest

from data.reading.formats import read
from data.reading.json_items import json_items
from data.reading.records import BadInput, FileRead
from data.source_config import TextConfig
from tests.data.reading.poems import CONTENTS, JSONL, POEMS, TEXTS, bad, read_all, texts, whole


def test_a_single_object_and_json_lines_under_the_name_json_are_read(tmp_path):
    (tmp_path / "1.json").write_text(json.dumps(POEMS[0]), encoding="utf-8")
    (tmp_path / "2.json").write_text(JSONL, encoding="utf-8")
    (tmp_path / "3.json").write_text(" [ ] ", encoding="utf-8")

    assert texts(read_all(tmp_path)) == [TEXTS[0], *TEXTS]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 17])
def test_json_is_parsed_the_same_wherever_the_window_ends(chunk, monkeypatch):
    monkeypatch.setattr("data.reading.json_items._CHUNK_CHARS", chunk)
    values = [{"a": 'x\\"]},{', "b": [1, -2.5e10, None, True]}, 12345, "静夜思\u2028", {}, 3.25, [[]]]

    assert list(json_items(io.StringIO(json.dumps(values)))) == values
    assert list(json_items(io.StringIO("\n".join(json.dumps(value) for value in values)))) == values


def test_a_broken_item_in_a_json_array_costs_that_item_only(tmp_path):
    path = tmp_path / "a.json"
    good = [json.dumps(poem, ensure_ascii=False).encode() for poem in POEMS]
    path.write_bytes(
        b"["
        + b", ".join([good[0], b'{"content": "a" "b": 1}', good[1], b'{"content": "\xff\xfe"}', b'{"content": "\\ud800"}', good[2]])
        + b"]"
    )

    items = read_all(path)

    assert texts(items) == TEXTS
    assert ["broken JSON" in reason or "do not fit" in reason for reason in bad(items)] == [True] * 3


def test_a_json_array_that_breaks_off_is_reported(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(CONTENTS["json"][:-60])

    items = read_all(path)

    assert texts(items) == TEXTS[:2]
    assert bad(items)


@pytest.mark.parametrize("behind", ["]", "}", ",", "作者"])
def test_a_json_array_that_breaks_off_counts_with_all_of_its_bytes(behind, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(CONTENTS["json"].rpartition(behind.encode())[0])

    *_, lost, note = read(whole(path), TextConfig())

    assert isinstance(lost, BadInput)
    assert isinstance(note, FileRead)
    assert lost.reason.startswith("the rest of the file cannot be read: the array is not closed")
    assert lost.num_bytes >= path.stat().st_size


@pytest.mark.parametrize("between", ["", "\n", "\ufeff"])
def test_arrays_one_behind_the_other_are_all_read(between, tmp_path):
    array = CONTENTS["json"].decode()
    (tmp_path / "a.json").write_text(between.join([array, "[]", array, '{"content": "甲"}']), encoding="utf-8")

    items = read_all(tmp_path / "a.json")

    assert texts(items) == [*TEXTS, *TEXTS, "甲"]
    assert bad(items) == []


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("broken", ['{"text": "甲"', '{"text": "甲', '{"text": "甲", "n": tru'])
def test_the_record_after_an_object_without_its_end_is_kept(name, broken, tmp_path):
    lines = [line for number in range(5) for line in (broken, json.dumps({"text": f"好{number}"}, ensure_ascii=False))]
    (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")

    items = read_all(tmp_path / name)

    assert texts(items) == [f"好{number}" for number in range(5)]
    assert len(bad(items)) == 5
    assert all(item.num_bytes >= len(broken.encode()) for item in items if isinstance(item, BadInput))


def test_an_object_without_its_end_in_an_array_costs_itself_only(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "一"}, {"text": "二", {"text": "三"}, {"text": "四"}]', encoding="utf-8")

    items = read_all(tmp_path / "a.json")

    assert texts(items) == ["一", "三", "四"]
    assert len(bad(items)) == 1


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_number_that_python_does_not_read_costs_its_record_only(name, tmp_path):
    lines = ['{"text": "一"}', '{"text": "二", "n": ' + "7" * 5000 + "}", '{"text": "三"}']
    (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")

    items = read_all(tmp_path / name)

    assert texts(items) == ["一", "三"]
    assert "Exceeds the limit" in "".join(bad(items))


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_a_json_file_changed_at_random_gives_what_is_whole_and_ends(chunk, monkeypatch):
    monkeypatch.setattr("data.reading.json_items._CHUNK_CHARS", chunk)
    draw = random.Random(chunk)
    text = json.dumps([{"content": "文本" * 9, "n": [1.5e3, None, {"a": "},{"}]} for _ in range(6)], ensure_ascii=False)
    for _ in range(300):
        letters = list(text)
        for _ in range(draw.randrange(1, 5)):
            letters[draw.randrange(len(letters))] = draw.choice(["", "", *'{}[],:"\\x1 \n'])
        changed = "".join(letters)[: draw.choice([len(text), draw.randrange(1, len(text))])]
        try:
            expected = json.loads(changed)
        except json.JSONDecodeError:
            with contextlib.suppress(EOFError):
                list(json_items(io.StringIO(changed)))  # comes to an end
            continue
        assert list(json_items(io.StringIO(changed))) == (expected if isinstance(expected, list) else [expected])


def test_a_json_array_of_200_megabytes_is_read_in_little_memory(tmp_path):
    path = tmp_path / "large.json"
    item = json.dumps({"content": "天地玄黄宇宙洪荒" * 40_000}, ensure_ascii=False)
    with path.open("w", encoding="utf-8") as file:
        file.write("[" + item)
        for _ in range(200):
            file.write("," + item)
        file.write("]")
    code = (
        "import resource, sys; from pathlib import Path; from data.reading.formats import *\n"
        "start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "count = sum(isinstance(item, Document) for item in read(Piece(Path(sys.argv[1]), 0), TextConfig()))\n"
        "print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) >> 10)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    count, grown_mib = map(int, result.stdout.split())

    assert count == 201
    assert grown_mib < 64  # The window, one item and its copies; the file has 197 MiB.
