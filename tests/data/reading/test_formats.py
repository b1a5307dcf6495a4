"""Every format and compression gives the same documents, however its files are cut into parts."""

import datetime
import decimal
import json
import subprocess
import sys
import time

import pyarrow as pa
import pytest
from backports import zstd

from data.documents import batched
from data.reading.formats import read, split
from data.reading.records import FileRead, Piece
from data.source_config import TextConfig
from tests.data.reading.poems import COMPRESS, CONTENTS, JSONL, POEMS, TEXTS, arrow_of, feather, parquet, parquet_of, read_all, texts


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


@pytest.mark.parametrize("compression", COMPRESS)
def test_an_arrow_file_with_an_index_is_read_too(compression, tmp_path):
    path = tmp_path / f"poems.arrow{compression}"
    path.write_bytes(COMPRESS[compression](feather(POEMS)))

    assert texts(read_all(path)) == TEXTS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "gb18030", "utf-16"])
@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl"])
def test_records_are_read_in_the_encoding_they_are_written_in(suffix, encoding, tmp_path):
    path = tmp_path / f"poems.{suffix}"
    path.write_bytes(CONTENTS[suffix].decode().encode(encoding))

    assert texts(read_all(path)) == TEXTS


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16"])
@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
def test_a_text_file_is_one_document_or_its_lines_or_its_paragraphs(line_break, encoding, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("第一段\n第二行\n\n第二段\n".replace("\n", line_break).encode(encoding))

    assert texts(read_all(path)) == ["第一段\n第二行\n\n第二段\n"]
    assert texts(read_all(path, text_documents="line")) == ["第一段", "第二行", "第二段"]
    assert texts(read_all(path, text_documents="paragraph")) == ["第一段\n第二行", "第二段"]


def test_lines_that_were_given_a_second_carriage_return_stay_one_paragraph(tmp_path):
    (tmp_path / "a.txt").write_bytes("第一段\r\r\n第二行\r\r\n\r\r\n第二段\r\r\n".encode())

    assert texts(read_all(tmp_path, text_documents="paragraph")) == ["第一段\n第二行", "第二段"]


def test_a_file_full_of_carriage_returns_is_read_in_a_moment(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a" + b"\r" * 300_000 + b"b")

    started = time.process_time()
    assert texts(read_all(tmp_path, text_documents="paragraph")) == ["a", "b"]
    assert time.process_time() - started < 10


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
    pieces = split([path], TextConfig(), 300)

    assert len(pieces) > 3
    assert [item for piece in pieces for item in read(piece, TextConfig()) if not isinstance(item, FileRead)] == read_all(path)


@pytest.mark.parametrize(("name", "write"), [("a.parquet", parquet_of), ("a.arrow", arrow_of)])
def test_a_time_that_python_has_no_type_for_is_text(name, write, tmp_path):
    times = [pa.array([1], pa.timestamp("ns")), pa.array([2**60], pa.timestamp("us")), pa.array([1], pa.duration("ns"))]
    (tmp_path / name).write_bytes(write(pa.Table.from_arrays([pa.array(["明月"]), *times], names=["text", "at", "far", "long"])))

    (document,) = read_all(tmp_path / name, fields={"at": "at"})

    assert (document.text, document.meta["at"]) == ("明月", "1970-01-01 00:00:00.000000001")


def test_an_ending_may_be_in_capitals(tmp_path):
    (tmp_path / "A.JSONL.GZ").write_bytes(COMPRESS[".gz"](JSONL.encode()))

    assert texts(read_all(tmp_path)) == TEXTS


def test_small_files_share_a_group_and_keep_their_order(tmp_path):
    pieces = [Piece(tmp_path / f"{index}.txt", num_bytes=40) for index in range(10)]

    groups = list(batched(pieces, lambda piece: piece.num_bytes, 100))

    assert [piece for part in groups for piece in part] == pieces
    assert [len(part) for part in groups] == [3, 3, 3, 1]


def test_a_field_of_any_type_is_what_a_template_shows(tmp_path):
    fields = {"day": datetime.date(2020, 1, 2), "price": decimal.Decimal("1.50"), "n": 3, "new": True, "tags": ["诗"], "in": {"a": 1}}
    (tmp_path / "a.parquet").write_bytes(parquet_of(pa.Table.from_pylist([{"text": "明月", **fields}])))

    (document,) = read_all(tmp_path / "a.parquet", fields={name: name for name in fields})

    assert list(document.meta.values()) == ["2020-01-02", "1.50", "3", "true", '["诗"]', '{"a": 1}']


def test_lists_of_lines_become_text_and_fields_can_be_renamed(tmp_path):
    path = tmp_path / "tang.json"
    path.write_text(json.dumps([{"paragraphs": TEXTS[:2], "rhythmic": "浣溪沙", "n": 3}], ensure_ascii=False), encoding="utf-8")

    (document,) = read_all(path, fields={"title": "rhythmic", "number": "n"})

    assert document.text == "\n".join(TEXTS[:2])
    assert document.meta == {"title": "浣溪沙", "number": "3"}


def test_zstd_frames_one_after_the_other_are_one_file(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(zstd.compress(line.encode() + b"\n") for line in JSONL.splitlines()))

    assert texts(read_all(path)) == TEXTS


def test_a_small_zst_that_unfolds_to_256_megabytes_is_read_in_little_memory(tmp_path):
    with zstd.open(tmp_path / "zeros.zst", "wb", level=19) as file:
        for _ in range(256):
            file.write(bytes(1 << 20))
    code = (
        "import resource, sys; from pathlib import Path; from data.reading.compression import open_bytes\n"
        "start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with open_bytes(Path(sys.argv[1])) as file: size = sum(map(len, iter(lambda: file.read(1 << 18), b'')))\n"
        "print(size >> 20, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) >> 10)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "zeros.zst")], capture_output=True, text=True, check=True)
    size_mib, grown_mib = map(int, result.stdout.split())

    assert size_mib == 256
    assert grown_mib < 48  # The window that the frame asks for, 8 MiB at this level, and buffers.
