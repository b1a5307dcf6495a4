"""Every format and compression gives the same documents, however its files are cut into parts."""

import gzip
import io
import json
import os
import random
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from data.documents import DataError, Document
from data.reading.compression import open_bytes
from data.reading.files import find_files
from data.reading.formats import Piece, group, read, split
from data.reading.json_items import json_items
from data.reading.records import BadInput, FileRead, Reading

POEMS = [
    {"题目": "静夜思", "朝代": "唐", "作者": "李白", "内容": "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"},
    {"题目": "登鹳雀楼", "朝代": "唐", "作者": "王之涣", "内容": '白日依山尽，"黄河"入海流。\n欲穷千里目，更上一层楼。'},
    {"题目": "鹿柴", "朝代": "唐", "作者": "王维", "内容": "空山不见人，但闻人语响。\n返景入深林，复照青苔上。"},
]
TEXTS = [poem["内容"] for poem in POEMS]
JSONL = "".join(json.dumps(poem, ensure_ascii=False) + "\n" for poem in POEMS)
CSV = "题目,朝代,作者,内容\n" + "".join(",".join('"' + value.replace('"', '""') + '"' for value in poem.values()) + "\n" for poem in POEMS)


def parquet(rows, row_group_size=None):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=row_group_size)
    return buffer.getvalue()


def arrow(rows):
    table = pa.Table.from_pylist(rows)
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


CONTENTS = {
    "csv": CSV.encode(),
    "json": json.dumps(POEMS, ensure_ascii=False, indent=1).encode(),
    "jsonl": JSONL.encode(),
    "parquet": parquet(POEMS),
    "arrow": arrow(POEMS),
}
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress}


def read_all(*paths, piece_bytes=1 << 20, **reading):
    how = Reading(**reading)
    files = find_files([str(path) for path in paths])
    return [item for piece in split(files, how, piece_bytes) for item in read(piece, how) if not isinstance(item, FileRead)]


def bad(items):
    return [item.reason for item in items if isinstance(item, BadInput)]


def texts(items):
    return [item.text for item in items if isinstance(item, Document)]


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("suffix", CONTENTS)
def test_every_format_gives_the_same_poems_with_their_fields(suffix, compression, tmp_path):
    folder = tmp_path / "唐诗 三百首"
    folder.mkdir()
    path = folder / f"诗 集.{suffix}{compression}"
    path.write_bytes(COMPRESS[compression](CONTENTS[suffix]))

    items = read_all(path)

    assert texts(items) == TEXTS
    assert [item.meta for item in items] == [{"title": p["题目"], "author": p["作者"], "dynasty": p["朝代"]} for p in POEMS]
    assert all(str(path) in item.source for item in items)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "gb18030", "utf-16"])
@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl"])
def test_records_are_read_in_the_encoding_they_are_written_in(suffix, encoding, tmp_path):
    path = tmp_path / f"poems.{suffix}"
    path.write_bytes(CONTENTS[suffix].decode().encode(encoding))

    assert texts(read_all(path)) == TEXTS


def test_a_text_file_is_one_document_or_its_lines_or_its_paragraphs(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("第一段\r\n第二行\r\n\r\n第二段\r\n".encode())

    assert texts(read_all(path)) == ["第一段\n第二行\n\n第二段\n"]
    assert texts(read_all(path, text_documents="line")) == ["第一段", "第二行", "第二段"]
    assert texts(read_all(path, text_documents="paragraph")) == ["第一段\n第二行", "第二段"]


def test_markdown_and_python_files_are_documents(tmp_path):
    (tmp_path / "a.md").write_text("# 标题\n", encoding="utf-8")
    (tmp_path / "b.py").write_text("print(1)\n", encoding="utf-8")

    assert texts(read_all(tmp_path)) == ["# 标题\n", "print(1)\n"]


@pytest.mark.parametrize("piece_bytes", [1, 7, 50, 100, 333, 10_000])
def test_a_file_cut_at_any_bytes_gives_every_record_once(piece_bytes, tmp_path):
    path = tmp_path / "poems.jsonl"
    path.write_text("\n" + JSONL * 3 + JSONL.rstrip("\n"), encoding="utf-8")

    assert read_all(path, piece_bytes=piece_bytes) == read_all(path)
    assert texts(read_all(path, piece_bytes=piece_bytes)) == TEXTS * 4


def test_parquet_is_cut_at_row_groups(tmp_path):
    path = tmp_path / "poems.parquet"
    path.write_bytes(parquet(POEMS * 20, row_group_size=7))
    pieces = split([path], Reading(), 300)

    assert len(pieces) > 3
    assert [item for piece in pieces for item in read(piece, Reading()) if not isinstance(item, FileRead)] == read_all(path)


def test_small_files_share_a_group_and_keep_their_order(tmp_path):
    pieces = [Piece(tmp_path / f"{index}.txt", num_bytes=40) for index in range(10)]

    groups = group(pieces, 100)

    assert [piece for part in groups for piece in part] == pieces
    assert [len(part) for part in groups] == [3, 3, 3, 1]


def test_lists_of_lines_become_text_and_fields_can_be_renamed(tmp_path):
    path = tmp_path / "tang.json"
    path.write_text(json.dumps([{"paragraphs": TEXTS[:2], "rhythmic": "浣溪沙", "n": 3}], ensure_ascii=False), encoding="utf-8")

    (document,) = read_all(path, fields={"title": "rhythmic", "number": "n"})

    assert document.text == "\n".join(TEXTS[:2])
    assert document.meta == {"title": "浣溪沙", "number": "3"}


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
                lines[2],
            ]
        )
    )

    items = read_all(path)

    assert texts(items) == TEXTS
    reasons = bad(items)
    assert len(items) == 8
    for reason, expected in zip(reasons, ["broken JSON", "do not fit", "a list", "empty document", "no field text"], strict=True):
        assert expected in reason


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
        *_, lost, read_note = read(Piece(tmp_path / name), Reading())

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

    (refused, _) = read(Piece(path), Reading())
    (replaced, note) = read(Piece(path), Reading(errors="replace"))

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


def test_zstd_frames_one_after_the_other_are_one_file(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(zstd.compress(line.encode() + b"\n") for line in JSONL.splitlines()))

    assert texts(read_all(path)) == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"\x89PNG\r\n" + bytes(range(256)), "picture"),
        ("a.jsonl", parquet(POEMS), "Parquet"),
        ("a.parquet", JSONL.encode(), "broken Parquet"),
        ("a.arrow", JSONL.encode(), "broken arrow"),
        ("a.json.gz", JSONL.encode(), "cannot be read"),
        ("a.json.zst", JSONL.encode(), "cannot be read"),
        ("a.docx", b"PK\x03\x04", "file type"),
        ("a.tar.gz", b"\x1f\x8b", "file type"),
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

        assert all(isinstance(item, Document | BadInput | FileRead) for item in read(Piece(path), Reading()))


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
        items = list(json_items(io.StringIO(changed)))
        try:
            expected = json.loads(changed)
        except json.JSONDecodeError:
            continue
        assert items == (expected if isinstance(expected, list) else [expected])


def test_an_item_longer_than_the_limit_is_bad_input_and_does_not_stop_the_file(tmp_path, monkeypatch):
    for module in ("data.reading.compression", "data.reading.formats"):
        monkeypatch.setattr(f"{module}.MAX_RECORD_BYTES", 2000)
    (tmp_path / "a.jsonl").write_text(JSONL + json.dumps({"text": "长" * 3000}, ensure_ascii=False) + "\n" + JSONL, encoding="utf-8")
    (tmp_path / "b.txt").write_text("长" * 3000, encoding="utf-8")

    items = read_all(tmp_path)

    assert texts(items) == TEXTS * 2
    assert len(bad(items)) == 2


def test_folders_and_patterns_are_read_by_name_and_each_file_once(tmp_path):
    for name in ("二/b.txt", "一/a.txt", "a [1].txt", ".hidden.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name, encoding="utf-8")

    assert texts(read_all(tmp_path)) == ["a [1].txt", "一/a.txt", "二/b.txt"]
    assert texts(read_all(tmp_path / "**" / "*.txt", tmp_path)) == ["a [1].txt", "一/a.txt", "二/b.txt"]
    assert texts(read_all(tmp_path / "a [1].txt")) == ["a [1].txt"]
    with pytest.raises(DataError, match="no such file"):
        find_files([str(tmp_path / "*.jsonl")])


def save_dataset(folder, rows):
    folder.mkdir(parents=True)
    (folder / "data-00000-of-00001.arrow").write_bytes(arrow(rows))
    (folder / "dataset_info.json").write_text("{}", encoding="utf-8")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}), encoding="utf-8")


def test_a_saved_hugging_face_dataset_is_read_and_one_with_splits_asks_which(tmp_path):
    for name in ("train", "test"):
        save_dataset(tmp_path / "poems" / name, POEMS)
    (tmp_path / "poems" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}', encoding="utf-8")

    assert texts(read_all(tmp_path / "poems" / "train")) == TEXTS
    with pytest.raises(DataError, match="2 splits"):
        find_files([str(tmp_path / "poems")])


def test_a_saved_dataset_cannot_point_outside_its_folder(tmp_path):
    save_dataset(tmp_path / "poems", POEMS)
    (tmp_path / "poems" / "state.json").write_text('{"_data_files": [{"filename": "../secret.arrow"}]}', encoding="utf-8")

    with pytest.raises(DataError, match="outside the folder"):
        find_files([str(tmp_path / "poems")])


def test_a_json_array_of_200_megabytes_is_read_in_little_memory(tmp_path):
    path = tmp_path / "large.json"
    item = json.dumps({"content": "天地玄黄宇宙洪荒" * 40_000}, ensure_ascii=False)
    with path.open("w", encoding="utf-8") as file:
        file.write("[" + item)
        for _ in range(200):
            file.write("," + item)
        file.write("]")
    code = (
        "import resource, sys; from pathlib import Path; from data.reading.formats import *; from data.reading.records import Reading\n"
        "start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "count = sum(isinstance(item, Document) for item in read(Piece(Path(sys.argv[1])), Reading()))\n"
        "print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) >> 10)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    count, grown_mib = map(int, result.stdout.split())

    assert count == 201
    assert grown_mib < 64  # The window, one item and its copies; the file has 197 MiB.


def test_opening_a_missing_package_is_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    (tmp_path / "a.txt.zst").write_bytes(b"x")

    with pytest.raises(DataError, match=r"requirements-data\.txt"):
        open_bytes(tmp_path / "a.txt.zst")
