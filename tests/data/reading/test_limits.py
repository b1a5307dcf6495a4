"""What is longer than a record may be is counted and passed over; what stands behind it is read."""

import json

import pytest

from data.reading.records import BadInput
from tests.data.reading.poems import JSONL, TEXTS, bad, read_all, texts


@pytest.fixture(autouse=True)
def limit_of_2000_bytes(monkeypatch):
    for module in ("data.reading.compression", "data.reading.text_formats"):
        monkeypatch.setattr(f"{module}.MAX_RECORD_BYTES", 2000)


def test_an_item_longer_than_the_limit_is_bad_input_and_does_not_stop_the_file(tmp_path):
    (tmp_path / "a.jsonl").write_text(JSONL + json.dumps({"text": "长" * 3000}, ensure_ascii=False) + "\n" + JSONL, encoding="utf-8")
    (tmp_path / "b.txt").write_text("长" * 3000, encoding="utf-8")

    items = read_all(tmp_path)

    assert texts(items) == TEXTS * 2
    assert len(bad(items)) == 2


def test_lines_of_utf_16_and_rows_of_csv_have_the_same_limit(tmp_path):
    short, long = "床前明月光", "长" * 600
    (tmp_path / "a.txt").write_text(f"{short}\n{long * 3}\n{short}\n", encoding="utf-16")
    (tmp_path / "b.csv").write_text(f"text,a\n{short},1\n{long},{long}\n{short},1\n", encoding="utf-8")

    for name, reason in (("a.txt", "a line longer than 0 MiB"), ("b.csv", "a row longer than")):
        items = read_all(tmp_path / name, text_documents="line")

        assert texts(items) == [short, short]
        assert reason in bad(items)[0]


LONG = "长" * 600


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    "row",
    [
        f'"{LONG}\n{LONG}\n\n短,1\n{LONG}",1',  # Too long in its second line.
        f'"{LONG * 3}\n{LONG}\n短,1\n",1',  # In its first.
        f'1,"{LONG * 3}""{LONG},""\n短,1\n"""',
        f'{LONG * 3}""{LONG},"短,""\n",""',
        f'{LONG * 3}"',
    ],
)
def test_a_row_of_csv_that_is_too_long_ends_where_it_ends_and_costs_no_other(row, encoding, tmp_path):
    (tmp_path / "a.csv").write_text(f'text,a\n床前,1\n{row}\n"明月",1\n', encoding=encoding)

    items = read_all(tmp_path / "a.csv")
    lost = [item.num_bytes for item in items if isinstance(item, BadInput)]

    assert texts(items) == ["床前", "明月"]
    assert lost == [len(row.encode()) + 1]


def test_a_paragraph_has_the_same_limit(tmp_path):
    (tmp_path / "a.txt").write_text(f"床前\n\n{LONG}\n{LONG}\n{LONG}\n\n明月\n", encoding="utf-8")

    items = read_all(tmp_path / "a.txt", text_documents="paragraph")

    assert texts(items) == ["床前", "明月"]
    assert bad(items) == ["a paragraph longer than 0 MiB"]
