"""What cannot be read or is left out, and what the report says of it."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

from data.batches.datasets import open_datasets
from data.cleaning_config import DeduplicateConfig
from data.config import TokenizerConfig, ValidationConfig
from data.documents import DataError
from data.prepare import prepare
from data.reading.records import BadInput
from data.source_config import ChaptersConfig, SourceConfig
from tests.data.stores import texts_of, write_documents


def test_bad_input_is_counted_and_listed(make, tmp_path):
    lines = [json.dumps({"text": f"春眠不觉晓，处处闻啼鸟。{number}"}, ensure_ascii=False) for number in range(60)]
    lines[30] = '{"text": "broken'
    path = tmp_path / "档案 1.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    config = make(path=str(path), chapters=None, max_bad_ratio=0.05)

    report = json.loads((prepare(config) / "report.json").read_text(encoding="utf-8"))

    assert report["bad_input"]["records"] == 1
    assert "档案 1.jsonl@" in report["bad_input"]["samples"][0]["source"]
    assert report["steps"][0]["documents"] == 59
    with pytest.raises(DataError, match=r"1 of 60 records could not be read, more than data\.max_bad_ratio = 0\.01 allows"):
        prepare(make(path=str(path), chapters=None, clean=(), max_bad_ratio=0.01))


def test_a_store_with_too_much_bad_input_is_refused_by_a_stricter_configuration(make, tmp_path):
    lines = [json.dumps({"text": f"春眠不觉晓，处处闻啼鸟。{number}"}, ensure_ascii=False) for number in range(60)]
    lines[30] = '{"text": "broken'
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = make(path=str(tmp_path / "a.jsonl"), chapters=None, max_bad_ratio=0.05)
    prepare(config)

    for use in (prepare, lambda config: open_datasets(config, seed=1)):
        with pytest.raises(DataError, match=r"1 of 60 records could not be read, more than data\.max_bad_ratio = 0 allows.*report\.txt"):
            use(dataclasses.replace(config, max_bad_ratio=0.0))


def test_one_bad_record_of_many_is_too_much_if_most_of_the_bytes_are_in_it(make, tmp_path):
    rows = [f"{number},{'字' * 20}" for number in range(400)]
    rows[200] = f'200,"{"字" * 20}'
    (tmp_path / "a.csv").write_text("id,text\n" + "\n".join(rows), encoding="utf-8")

    with pytest.raises(DataError, match=r"\d+ of \d+ bytes could not be read, more than data\.max_bad_ratio = 0\.01"):
        prepare(make(path=str(tmp_path / "a.csv"), chapters=None))


def test_the_report_tells_encodings_replaced_places_and_bad_records_by_reason_and_file(make, tmp_path):
    (tmp_path / "in").mkdir()
    text = "却说贾政在外得知此事，心中大不自在。\n" * 100
    broken = bytearray(text.encode("gb18030"))
    broken.insert(broken.index(b"\n", 1000) + 1, 0xFF)
    (tmp_path / "in" / "a.txt").write_bytes(broken)
    (tmp_path / "in" / "b.txt").write_text(text, encoding="utf-16")
    lines = ["{}"] * 60 + [json.dumps({"text": "床前明月光，疑是地上霜。"}, ensure_ascii=False)] + ["{"] * 30
    (tmp_path / "in" / "c.jsonl").write_text("\n".join(lines), encoding="utf-8")

    chosen = {"chapters": None, "errors": "replace", "max_bad_ratio": 1.0, "validation": ValidationConfig(ratio=0.2), "clean": ()}
    folder = prepare(make(path=str(tmp_path / "in"), **chosen))
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))

    assert [(Path(file["path"]).name, file["encoding"], file["replaced"]) for file in report["files"]] == [
        ("a.txt", "gb18030", 1),
        ("b.txt", "utf-16", 0),
        ("c.jsonl", "utf-8", 0),
    ]
    assert sorted(report["bad_input"]["by_reason"].values()) == [30, 60]
    assert list(report["bad_input"]["by_file"].values()) == [90]
    table = (folder / "report.txt").read_text(encoding="utf-8")
    assert "a.txt: gb18030, unreadable places replaced by \ufffd: 1" in table
    assert "could not be read: 90 of 93 records" in table


@pytest.mark.parametrize(
    ("numbers", "chapters", "message"),
    [
        ([1, 2, 3, 5, 6], ChaptersConfig(), r"chapter headings are missing: 4 between lines 5 and 7\. .* data\.chapters\.absent"),
        ([1, 2, 3], ChaptersConfig(last=4), r"chapters 1 to 3 are there, data\.chapters asks for 1 to 4\. Set .*last=3"),
        ([3, 4, 5], ChaptersConfig(), r"chapters 3 to 5 are there, data\.chapters asks for 1 to the last\. Set .*first=3"),
    ],
)
def test_chapters_that_do_not_add_up_are_refused(make, tmp_path, numbers, chapters, message):
    text = "".join(f"第{number}回 题\n{'正文' * 50}\n" for number in numbers)
    (tmp_path / "novel.txt").write_text(text, encoding="utf-8")

    with pytest.raises(DataError, match=message):
        prepare(make(path=str(tmp_path / "novel.txt"), chapters=chapters, validation=ValidationConfig(last_documents=1)))


def test_what_stands_outside_the_chapters_asked_for_is_said(make, tmp_path, caplog):
    text = "作者自序" * 10 + "\n" + "".join(f"第{number}回 题\n{'正文' * 50}\n" for number in range(1, 6))
    (tmp_path / "novel.txt").write_text(text, encoding="utf-8")
    caplog.set_level("INFO")

    chosen = {"chapters": ChaptersConfig(last=3), "validation": ValidationConfig(last_documents=1), "clean": ()}
    folder = prepare(make(path=str(tmp_path / "novel.txt"), **chosen))

    said = (folder / "report.txt").read_text(encoding="utf-8")
    for line in (
        "novel.txt: chapters 1 to 5; kept 1 to 3",
        "before the first chapter heading: 41 characters left out",
        "chapters other than 1 to 3: 212 characters left out",
    ):
        assert line in said
        assert line in caplog.text


def test_text_that_the_rules_drop_altogether_is_said_to_be_dropped(make):
    with pytest.raises(DataError, match=r"no text is left of verse: all 20 documents are dropped by data\.clean\. Check"):
        prepare(make(clean=({"rule": "min_length", "chars": 100_000},)))


def test_text_of_which_nothing_could_be_read_is_said_to_be_unreadable(make, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": \n' * 3, encoding="utf-8")
    with pytest.raises(DataError, match=r"no text is left of bad: none of it could be read\. Check the text and the rules\.$"):
        prepare(make(path=str(tmp_path / "bad.jsonl"), chapters=None, max_bad_ratio=1.0))


def test_report_and_parquet_end_where_the_budget_does(make, tmp_path):
    import pyarrow.parquet

    path = write_documents(tmp_path / "many", 300)
    validation = ValidationConfig(ratio=0.2, max_tokens=500)
    folder = prepare(make(path=path, chapters=None, validation=validation, max_train_tokens=3000, clean=(), documents="parquet"))
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))

    assert sum(entry["count"] for entry in report["tokens"]["frequent"] if entry["token"] == "<|endoftext|>") == 49 + 8
    for split, count in (("train", 49), ("valid", 8)):
        texts = pyarrow.parquet.read_table(folder / "documents" / f"{split}-00000.parquet")["text"].to_pylist()
        assert texts == [text.removesuffix("<|endoftext|>") for text in texts_of(folder, split)]
        assert len(texts) == report["splits"][split]["documents"] == count
    left_out = 300 * 60 - (49 + 8) * 60
    assert re.search(rf"in neither, for budgets +{left_out:,}\n", (folder / "report.txt").read_text(encoding="utf-8"))


def test_the_report_tells_what_every_rule_dropped(make, tmp_path):
    documents = write_documents(tmp_path / "many", 50)
    for number in range(7):
        (tmp_path / "many" / f"short {number}.txt").write_text("短" * (number + 1), encoding="utf-8")
    rules = ({"rule": "min_length", "chars": 20},)

    folder = prepare(make(path=documents, chapters=None, validation=ValidationConfig(ratio=0.3), clean=rules))
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))

    read, cleaned = report["steps"]
    assert (read["documents"], cleaned["documents"], cleaned["dropped"]) == (57, 50, 7)
    # A character is a token, and each document has one more at its end.
    assert (read["tokens"], cleaned["tokens"], cleaned["tokens_are"]) == (50 * 61 + 28 + 7, 50 * 61, "counted")
    assert [sample["text"] for sample in cleaned["samples"]] == ["短", "短短", "短短短", "短短短短", "短短短短短"]
    splits = report["splits"]
    assert splits["train"]["documents"] + splits["valid"]["documents"] == 50
    assert splits["train"]["chars"] + splits["valid"]["chars"] == cleaned["chars"] == 50 * 60
    assert report["tokens"]["frequent"][0]["token"] == "<|endoftext|>"
    assert (folder / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert "dropped by clean: min_length, for example:" in (folder / "report.txt").read_text(encoding="utf-8")


def test_tokens_of_a_step_are_counted_where_they_are_known_and_else_marked_as_estimated(make, tmp_path):
    documents = write_documents(tmp_path / "many", 200)
    (tmp_path / "many" / "short.txt").write_text("短", encoding="utf-8")
    settings = {
        "path": documents,
        "chapters": None,
        "validation": ValidationConfig(ratio=0.2),
        "clean": ({"rule": "min_length", "chars": 20},),
    }

    folder = prepare(make(**settings, tokenizer=TokenizerConfig(kind="byte_bpe", vocab_size=300)))
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))

    read, cleaned = report["steps"]
    assert (read["tokens_are"], cleaned["tokens_are"]) == ("estimated", "counted")
    assert cleaned["tokens"] == sum(split["tokens"] for split in report["splits"].values())
    assert f"~{read['tokens']:,}" in (folder / "report.txt").read_text(encoding="utf-8")


def test_a_field_that_the_template_asks_for_and_records_lack_is_said(make, tmp_path, caplog):
    caplog.set_level("INFO")
    records = [{"text": f"春眠不觉晓，处处闻啼鸟。{number}", **({"title": "春晓"} if number % 2 else {})} for number in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")

    chosen = {"template": "{title}{auhtor}{form}{text}", "clean": (), "validation": ValidationConfig(last_documents=5)}
    folder = prepare(make(path=str(tmp_path / "a.jsonl"), chapters=None, **chosen))

    for count, name in ((40, "auhtor"), (20, "title")):
        line = f"a: {count} documents have no {name}, which data.template asks for; nothing stands there"
        assert line in caplog.text
        assert line in (folder / "report.txt").read_text(encoding="utf-8")


def test_a_text_that_is_read_twice_is_said(make, verse, tmp_path, caplog):
    copy = shutil.copy(verse, tmp_path / "copy.txt")
    sources = (SourceConfig(path=str(verse)), SourceConfig(path=str(copy)))
    several = {"path": None, "chapters": None, "sources": sources, "clean": (), "validation": ValidationConfig(ratio=0.2)}

    prepare(make(**several))
    assert f"1 files are copies of others, as of {verse.name}, and are read too" in caplog.text
    caplog.clear()
    with pytest.raises(DataError, match="no text is left of copy"):
        prepare(make(**several, deduplicate=DeduplicateConfig()))
    assert "are copies of others" not in caplog.text


def test_a_file_whose_name_has_two_lines_is_named_in_one(make, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a\nb.jsonl").write_text("{", encoding="utf-8")

    with pytest.raises(DataError, match=r"in/a\\nb\.jsonl@0: broken JSON"):
        prepare(make(path=str(tmp_path / "in"), chapters=None))


def test_a_record_without_anything_that_the_template_asks_for_is_counted(make, tmp_path):
    records = [{"text": f"春眠不觉晓，处处闻啼鸟。{number}", "title": f"春晓{number}" if number % 2 else None} for number in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")

    chosen = {"template": "{title}", "clean": (), "max_bad_ratio": 1.0, "validation": ValidationConfig(last_documents=5)}
    folder = prepare(make(path=str(tmp_path / "a.jsonl"), chapters=None, **chosen))
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))

    assert report["steps"][0]["documents"] == 20
    assert report["bad_input"]["by_reason"] == {"empty document": 20}


def test_equal_reasons_are_counted_together_and_names_of_encodings_kept():
    mixed = BadInput("a.txt", "is written in several encodings, most of it in gb18030, this line in UTF-8: 石頭")

    assert mixed.kind == "is written in several encodings, most of it in gb18030, this line in UTF-8"
    assert BadInput("a.csv[7]", "3 fields near line 12, the header has 2").kind == "N fields near line N, the header has N"
