"""What is broken in a file is counted, with its reason and its size; the rest is read."""

import gzip
import json
import os
import random
import re
import sys

import pyarrow as pa
import pytest

from data.documents import DataError, Document
from data.reading.compression import open_bytes
from data.reading.formats import read
from data.reading.records import BadInput, FileRead, Piece
from data.source_config import TextConfig
from tests.data.reading.poems import (
    COMPRESS,
    CSV,
    JSONL,
    POEMS,
    TEXTS,
    arrow,
    arrow_of,
    bad,
    feather,
    parquet,
    parquet_of,
    read_all,
    texts,
    whole,
)


def test_broken_lines_are_counted_and_the_others_kept(tmp_path):
    lines = JSONL.encode().splitlines()
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b"\n".join(
            [
                lines[0],
                b'{"text": "cut',
                lines[1],
                lines[2][:-9] + b"\xff" + lines[2][-8:],
                b"[1, 2]",
                b'{"content": " "}',
                b'{"url": "x"}',
                b'{"text": null}',
                lines[2],
            ]
        )
    )

    items = read_all(path)

    assert texts(items) == TEXTS
    reasons = bad(items)
    assert len(items) == 9
    for reason, expected in zip(
        reasons, ["broken JSON", "do not fit", "a list", "empty document", "no field text", "the text is null"], strict=True
    ):
        assert expected in reason


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "b.jsonl.gz"])
@pytest.mark.parametrize("content", [b"", b" \n \n"])
def test_an_empty_file_of_records_is_reported(name, content, tmp_path):
    (tmp_path / name).write_bytes(COMPRESS[".gz"](content) if name.endswith(".gz") else content)

    assert len(bad(read_all(tmp_path / name))) >= 1


def test_what_is_lost_is_counted_in_bytes(tmp_path):
    rows = [f"{number},{'字' * 100}" for number in range(1000)]
    rows[500] = f'500,"{"字" * 100}'
    (tmp_path / "a.csv").write_text("id,text\n" + "\n".join(rows), encoding="utf-8")
    content = "".join(json.dumps({"text": os.urandom(200).hex()}) + "\n" for _ in range(1000)).encode()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content)[:-50_000])

    for name in ("a.csv", "b.jsonl.gz"):
        *_, lost, read_note = read(whole(tmp_path / name), TextConfig())

        assert isinstance(lost, BadInput)
        assert isinstance(read_note, FileRead)
        assert lost.num_bytes > 0.4 * read_note.num_bytes


@pytest.mark.parametrize("encoding", ["gb18030", "utf-8", "big5"])
def test_a_broken_byte_is_refused_with_its_line_or_replaced_and_counted(encoding, tmp_path):
    text = "却说贾政在外得知此事，心中大不自在。\n" * 600
    content = bytearray((text if encoding != "big5" else text.replace("说贾", "說賈").replace("却", "卻")).encode(encoding, "replace"))
    content.insert(content.index(b"\n", 6000) + 1, 0xFF)
    path = tmp_path / "a.txt"
    path.write_bytes(content)

    (refused, _) = read(whole(path), TextConfig())
    (replaced, note) = read(whole(path), TextConfig(errors="replace"))

    assert isinstance(refused, BadInput)
    assert re.search(r'1 place, the first in line \d+; data\.errors="replace"', refused.reason)
    assert refused.num_bytes == len(content)
    assert isinstance(replaced, Document)
    assert replaced.text.count("\ufffd") == note.num_replaced == 1
    assert note.encoding.startswith(encoding)


def test_rows_with_missing_fields_and_open_quotes_are_reported(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(CSV + "只有,两项\n" + '"a","b","c","open\n', encoding="utf-8")

    items = read_all(path)

    assert texts(items) == TEXTS
    assert len(bad(items)) == 2
    assert "2 fields" in bad(items)[0]


@pytest.mark.parametrize("compression", [".gz", ".zst"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "json"])
def test_a_truncated_archive_gives_what_it_holds_and_says_so(suffix, compression, tmp_path):
    path = tmp_path / f"a.{suffix}{compression}"
    records = [{"content": f"{index} {os.urandom(500).hex()}"} for index in range(2000)]
    content = {
        "jsonl": "\n".join(map(json.dumps, records)),
        "json": json.dumps(records),
        "csv": "content\n" + "\n".join(r["content"] for r in records),
    }[suffix]
    whole = COMPRESS[compression](content.encode())
    path.write_bytes(whole[: len(whole) // 2])

    items = read_all(path)

    assert len(texts(items)) > 200
    assert any("cannot be read" in reason for reason in bad(items))


def test_a_file_of_a_type_that_is_not_read_counts_with_all_of_its_bytes(tmp_path):
    (tmp_path / "a.jsonl.xz").write_bytes(bytes(1000))

    lost, note = read(whole(tmp_path / "a.jsonl.xz"), TextConfig())

    assert isinstance(lost, BadInput)
    assert lost.num_bytes == 1000
    assert note == FileRead(str(tmp_path / "a.jsonl.xz"), None, 1000, 0)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz", "a.txt", "a.csv.zst", "a.parquet", "a.arrow"])
def test_a_file_that_the_machine_does_not_give_is_no_bad_input_but_ends_the_reading(name, tmp_path):
    with pytest.raises(DataError, match=rf"{name}: cannot be read \(No such file or directory\)\. Mend it and start again"):
        list(read(Piece(tmp_path / name, num_bytes=10), TextConfig()))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"\x89PNG\r\n" + bytes(range(256)), "picture"),
        ("a.jsonl", parquet(POEMS), "Parquet"),
        ("a.parquet", JSONL.encode(), "broken Parquet"),
        ("a.arrow", JSONL.encode(), "broken arrow"),
        ("a.json.gz", JSONL.encode(), "cannot be read"),
        ("a.json.zst", JSONL.encode(), "cannot be read"),
        ("a.docx", b"PK\x03\x04", 'file type ".docx"'),
        ("a.tar.gz", b"\x1f\x8b", 'file type ".tar.gz"'),
        ("a.txt", b"", "empty document"),
        ("a.csv", b"", "no header"),
        ("a.txt", "红楼梦".encode() * 1000 + b"\xff" + "石头记".encode() * 1000, "1 place, the first in line 1"),
    ],
)
def test_a_file_of_the_wrong_kind_is_one_bad_input_with_its_reason(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(content)

    items = read_all(tmp_path)

    assert texts(items) == []
    assert any(reason in line for line in bad(items))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.txt", "a.json.gz", "a.jsonl.zst", "a.parquet", "a.arrow"])
def test_no_bytes_whatever_stop_a_reader(name, tmp_path):
    draw = random.Random(name)
    path = tmp_path / name
    for attempt in range(150):
        size = draw.randrange(200)
        path.write_bytes(draw.randbytes(size) if attempt % 2 else bytes(draw.choices(b'{}[]",:ab\n\\ \xe4\xb8\xad', k=size)))

        assert all(isinstance(item, Document | BadInput | FileRead) for item in read(whole(path), TextConfig()))


@pytest.mark.parametrize("content", [arrow(POEMS * 3), feather(POEMS * 3)])
def test_an_arrow_file_changed_at_random_does_not_stop_the_reader(content, tmp_path):
    draw = random.Random(0)
    for _ in range(100):
        changed = bytearray(content)
        for _ in range(draw.randrange(1, 6)):
            changed[draw.randrange(len(changed))] = draw.choice([0, 0x80, 0xFF])
        (tmp_path / "a.arrow").write_bytes(changed)

        assert isinstance(list(read(whole(tmp_path / "a.arrow"), TextConfig()))[-1], FileRead)


ROWS = [f"第{number}首：床前明月光" for number in range(400)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
@pytest.mark.parametrize(
    ("name", "begin", "row"), [("a.csv", "text,author\n", "{},李白\n"), ("a.jsonl", "", '{{"text": "{}"}}\n'), ("a.txt", "", "{}\n")]
)
def test_a_zero_byte_costs_its_record_only_or_is_replaced(encoding, name, begin, row, tmp_path):
    content = begin + "".join(row.format(text.replace("200", "200\0")) for text in ROWS)
    (tmp_path / name).write_text(content, encoding=encoding)

    refused = read_all(tmp_path / name, text_documents="line")
    replaced = read_all(tmp_path / name, text_documents="line", errors="replace")

    assert texts(refused) == ROWS[:200] + ROWS[201:]
    assert len(bad(refused)) == 1
    assert texts(replaced)[200] == "第200\ufffd首：床前明月光"
    assert bad(replaced) == []


ZERO = [{"text": "第\0首"}, *({"text": "好"} for _ in range(20))]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", "\n".join(map(json.dumps, ZERO)).encode()),
        ("a.json", json.dumps(ZERO).encode()),
        ("a.json", json.dumps(ZERO).replace("\\u0000", "\0").encode()),
        ("a.parquet", parquet(ZERO)),
        ("a.arrow", arrow(ZERO)),
    ],
)
def test_a_zero_character_is_the_same_however_it_is_written(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)

    assert texts(read_all(tmp_path / name)) == ["好"] * 20
    assert "zero characters" in bad(read_all(tmp_path / name))[0]
    assert texts(read_all(tmp_path / name, errors="replace")) == ["第\ufffd首", *["好"] * 20]


def test_opening_a_missing_package_is_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    (tmp_path / "a.txt.zst").write_bytes(b"x")

    with pytest.raises(DataError, match=r"requirements-data\.txt"):
        open_bytes(tmp_path / "a.txt.zst")


COLUMNS = pa.Table.from_arrays([pa.array(["甲", "乙"]), pa.array(["甲", "丙"]), pa.array([1, 2])], names=["text", "text", "id"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "甲", "id": 1, "id": 2, "text": "甲"}\n{"text": "乙", "text": "丙"}\n'.encode()),
        ("a.json", '[{"text": "甲", "id": 1, "id": 2, "text": "甲"}, {"text": "乙", "text": "丙"}]'.encode()),
        ("a.parquet", parquet_of(COLUMNS)),
        ("a.arrow", arrow_of(COLUMNS)),
        ("a.csv", "text,id,text\n甲,1,甲\n乙,2,丙\n".encode()),
    ],
)
def test_a_text_that_is_there_twice_is_not_chosen_in_silence(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)

    items = read_all(tmp_path / name)

    assert texts(items) == ["甲"]
    assert bad(items) == ["the text is there more than once, with different values"]


TITLES = {"a.csv": "题目,题目,内容\n甲,乙,红楼\n", "a.jsonl": '{"题目": "甲", "题目": "乙", "内容": "红楼"}\n'}


@pytest.mark.parametrize("name", TITLES)
def test_another_field_that_is_there_twice_costs_the_record_only_where_somebody_asks_for_it(name, tmp_path):
    (tmp_path / name).write_text(TITLES[name], encoding="utf-8")

    assert texts(read_all(tmp_path / name)) == ["红楼"]
    assert texts(read_all(tmp_path / name, template="{author}:{text}")) == ["红楼"]
    refused = ["the title is there more than once, with different values"]
    assert bad(read_all(tmp_path / name, template="{title}:{text}")) == refused
    assert bad(read_all(tmp_path / name, fields={"title": "题目"})) == refused


def test_a_text_that_is_named_by_the_configuration_may_stand_beside_others(tmp_path):
    (tmp_path / "a.csv").write_text("text,text,body\n甲,乙,红楼\n", encoding="utf-8")

    assert texts(read_all(tmp_path / "a.csv", fields={"text": "body"})) == ["红楼"]
