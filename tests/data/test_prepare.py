"""A preparation from text to store: when one is made, reused or refused, and what is said."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.batches.datasets import open_datasets
from data.config import PackConfig, TokenizerConfig, ValidationConfig
from data.documents import DataError
from data.prepare import check_packages, main, prepare
from data.source_config import ReverseConfig
from data.steps.identify import FileHashes
from data.store import token_store
from data.store.registry import find_store, record_path
from data.tokenizers import adoption, tokenizer_folder
from tests.data.stores import contents, flip_bit, large_config, texts_of


def test_a_second_preparation_uses_the_store_that_is_there(make):
    first = prepare(make())
    written = (first / "manifest.json").stat().st_mtime_ns

    assert prepare(make()) == first == find_store(make()).folder
    assert (first / "manifest.json").stat().st_mtime_ns == written


def test_nothing_but_the_store_is_left_behind(make, tmp_path):
    folder = prepare(make())

    assert {path.name for path in (tmp_path / "stores").iterdir() if not path.name.startswith(".")} == {folder.name, "records"}
    assert [path.name for path in (tmp_path / "stores/records").iterdir()] == [record_path(make()).name]
    assert not list((tmp_path / "stores").glob("*.work"))


def test_what_an_unfinished_preparation_of_another_text_left_is_named(make, tmp_path, caplog):
    caplog.set_level("INFO")
    name = make().name
    for folder in (f".{name}-0123456789ab.work", f".{name}-2-0123456789ab.work", f".{name}-0123456789ab.lock"):
        (tmp_path / "stores" / folder).mkdir(parents=True)

    prepare(make())

    said = [line for line in caplog.messages if "did not finish" in line]
    assert len(said) == 1
    assert said[0].startswith(str(tmp_path / "stores" / f".{name}-0123456789ab.work"))


def test_another_rule_or_another_text_is_another_store(make, verse, tmp_path):
    shorter = tmp_path / "verse.txt"
    shorter.write_text(verse.read_text(encoding="utf-8")[:-100], encoding="utf-8")

    folders = {
        prepare(config)
        for config in (make(), make(path=str(shorter)), make(tokenizer=TokenizerConfig(kind="characters", vocab_size=30)), make(clean=()))
    }

    assert len(folders) == 4


def test_windows_length_and_place_do_not_make_another_store(make, verse, tmp_path):
    moved = shutil.copy(verse, tmp_path / verse.name)

    assert prepare(make()) == prepare(make(seq_length=32, path=str(moved), num_workers=2, tail="wrap"))


def test_a_store_is_used_when_its_text_is_gone(make, verse, tmp_path, caplog):
    text = tmp_path / verse.name
    shutil.copy(verse, text)
    folder = prepare(make(path=str(text)))
    text.unlink()

    assert find_store(make(path=str(text))).folder == folder == prepare(make(path=str(text)))
    assert f"{text} is not here any more: the store that was made of it is used as it is" in caplog.text
    with pytest.raises(DataError, match="no such file"):
        prepare(make(path=str(text), clean=()))


def test_looking_for_a_store_needs_neither_torch_nor_deepspeed(make):
    program = (
        "import sys; from data.config import *; from data.source_config import *; from data.store.registry import find_store\n"
        f"find_store({make()!r})\n"
        "assert not {'torch', 'deepspeed', 'transformers', 'tokenizers', 'pyarrow'} & set(sys.modules), sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_damaged_store_is_refused_by_the_next_preparation(make):
    flip_bit(prepare(make()) / "train-00000.bin", 3)

    with pytest.raises(DataError, match=r"was changed after it was written .* Delete"):
        prepare(make())


# What goes wrong, and the line that says so.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, "a picture, not text"),
        (b"", "could not be read"),
        (b" \n\n ", "could not be read"),
        ("没有回目的一段文字。".encode() * 50, r"no line is a chapter heading .* data\.chapters=null"),
        ("第一回 甲\n乙丙\n第二回 丁\n戊\n".encode(), r"there are 2 documents, so nothing is left to train on"),
        ("第一回 甲\n乙\n第二回 丁\n戊己庚辛\n第三回 丁\n戊己庚辛".encode(), r"less than one window of data\.seq_length \+ 1 = 17"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused_with_the_reason(make, tmp_path, content, message):
    path = tmp_path / "own text.txt"
    path.write_bytes(content)

    with pytest.raises(DataError, match=message):
        prepare(make(path=str(path)))


def test_a_path_that_does_not_exist_is_refused(make):
    with pytest.raises(DataError, match=r"no such file"):
        prepare(make(path="nowhere/at all.txt"))


def test_a_full_disk_is_noticed_before_the_work(make, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))

    with pytest.raises(DataError, match=r"0 MiB free, about \d+ MiB wanted\. Make room, or set data\.directory"):
        prepare(make())


def test_the_command_answers_a_mistake_with_one_line_and_code_2(make, tmp_path, capsys):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"data": {"path": "nowhere.txt", "seq_length": 8, "tokenizer": {"kind": "characters"}}}), encoding="utf-8")

    assert main([str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1

    path.write_text(json.dumps({"data": {"pth": "nowhere.txt", "seq_length": 8, "tokenizer": {"kind": "characters"}}}), encoding="utf-8")
    assert main([str(path)]) == 2
    assert 'unknown key "data.pth". Did you mean "path"' in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([])


def test_help_is_no_file(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    assert "CONFIG [dotted.key=value ...]" in capsys.readouterr().out


def test_the_command_prints_where_the_store_is(make, verse, tmp_path, capsys):
    section = {"path": str(verse), "seq_length": 8, "tokenizer": {"kind": "characters"}, "clean": [], "directory": str(tmp_path / "stores")}
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"data": section}), encoding="utf-8")

    assert main([str(path)]) == 0
    assert (Path(capsys.readouterr().out.strip()) / "manifest.json").is_file()

    reading, writing = os.pipe()
    os.close(reading)  # As `head` does when it has had enough.
    command = [sys.executable, "-u", "-m", "data.prepare", str(path)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr.splitlines()[1:]) == (141, []), "it says that the store is up to date, and no more"


def test_the_last_shard_is_held_out_and_copies_are_gone(whole):
    train, valid = texts_of(whole, "train"), texts_of(whole, "valid")

    assert len(train) + len(valid) == len({*train, *valid}) == 1150
    assert 200 < len(valid) < 400  # one of four shards


def test_shuffling_changes_the_order_of_documents(large, whole):
    read = [json.loads(line)["content"] for line in Path(large).read_text(encoding="utf-8").splitlines()]
    order = [read.index(text) for text in texts_of(whole)[:50]]

    assert order != sorted(order)


@pytest.mark.processes
def test_any_number_of_workers_makes_the_same_store(large, whole, tmp_path):
    made = prepare(large_config(large, tmp_path, num_workers=3))

    assert made.name == whole.name
    assert contents(made) == contents(whole)


def test_packed_rows_hold_every_token_but_the_unfinished_last_row(make, whole, large, tmp_path):
    import pyarrow.parquet

    folder = prepare(large_config(large, tmp_path, pack=PackConfig(length=32), documents="parquet"))
    split = token_store.read_manifest(folder)["splits"]["train"]
    rows = pyarrow.parquet.read_table(folder / "packed-train.parquet")["input_ids"].combine_chunks().values.to_numpy()
    (rows_of,) = open_datasets(large_config(large, tmp_path, pack=PackConfig(length=32), documents="parquet"), 1).train._windows
    stream = rows_of._stream

    assert split["packed"]["left_out_tokens"] < 32
    assert len(rows) + split["packed"]["left_out_tokens"] == split["tokens"] == stream.num_tokens
    np.testing.assert_array_equal(rows, stream.read(0, len(rows)))
    kept = [
        text
        for path in sorted((folder / "documents").glob("train-*.parquet"))
        for text in pyarrow.parquet.read_table(path)["text"].to_pylist()
    ]
    assert kept == texts_of(whole)


def test_the_reverse_task_holds_out_strings_that_training_never_shows(make):
    reverse = ReverseConfig(num_samples=3000, max_length=4, alphabet="abc")
    config = make(path=None, chapters=None, corpus="reverse", reverse=reverse, validation=ValidationConfig(ratio=0.2), clean=())

    folder = prepare(config)
    train, valid = texts_of(folder, "train"), texts_of(folder, "valid")

    assert not set(train) & set(valid)
    assert {len(text) for text in train} == {3, 5, 7, 9}
    assert all(text == f"{text[: len(text) // 2]}>{text[: len(text) // 2][::-1]}" for text in train + valid)


def test_fields_and_forms_of_poems_can_stand_in_the_text(make, tmp_path):
    rows = ["题目,朝代,作者,内容", "静夜思,唐,李白,床前明月光，疑是地上霜。举头望明月，低头思故乡。", "即事,唐,杜甫,国破山河在。"]
    rows += [f"其{number},唐,王维,空山不见人，但闻人语响。返景入深林，复照青苔上。" for number in range(3)]
    path = tmp_path / "诗.csv"
    path.write_text("\n".join(rows), encoding="utf-8")
    template = "{title}（{dynasty}·{author}·{form}）\n{text}"

    folder = prepare(make(path=str(path), chapters=None, template=template, clean=(), validation=ValidationConfig(last_documents=1)))

    assert texts_of(folder)[0] == "静夜思（唐·李白·五言绝句）\n床前明月光，疑是地上霜。举头望明月，低头思故乡。"
    assert "杂言" not in texts_of(folder)[1]


def test_an_existing_tokenizer_makes_the_store_and_another_one_another_store(make, whole, tmp_path):
    existing = TokenizerConfig(kind="existing", path=str(whole / "tokenizer"), add_bos=True)
    folder = prepare(make(tokenizer=existing, clean=()))
    first = token_store.Shard(folder / "train-00000").read(0, 1)

    assert first[0] == tokenizer_folder.load(folder / "tokenizer").bos_id
    assert folder != prepare(make(tokenizer=dataclasses.replace(existing, add_bos=False), clean=()))


def test_a_tokenizer_without_a_token_to_begin_a_text_is_refused_before_the_work(make, whole, tmp_path):
    shutil.copy(whole / "tokenizer" / "tokenizer.json", tmp_path / "own.json")
    existing = TokenizerConfig(kind="existing", path=str(tmp_path / "own.json"), add_bos=True)

    with pytest.raises(DataError, match=r"own\.json: no begin-of-text token is named, but data\.tokenizer\.add_bos is true\. Name one"):
        prepare(make(tokenizer=existing))
    assert not list((tmp_path / "stores").glob(".*.work/1-clean"))


def test_such_a_tokenizer_that_an_earlier_version_has_taken_over_is_refused_too(make, whole, tmp_path, monkeypatch):
    shutil.copy(whole / "tokenizer" / "tokenizer.json", tmp_path / "own.json")
    existing = TokenizerConfig(kind="existing", path=str(tmp_path / "own.json"), add_bos=True)

    def adopt(config, folder):  # As the earlier version had it.
        adopted(dataclasses.replace(config, add_bos=False), folder)

    adopted = adoption.adopt
    monkeypatch.setattr(adoption, "adopt", adopt)

    with pytest.raises(DataError, match=r"own\.json names no begin-of-text token\. Name one: data\.tokenizer\.bos_token="):
        prepare(make(tokenizer=existing))


def test_the_text_is_hashed_once(make, verse, tmp_path, monkeypatch):
    prepare(make())
    hashes = FileHashes(tmp_path / "stores" / ".hashes.json")
    monkeypatch.setattr("data.steps.identify.sha256_of", lambda path: pytest.fail("was hashed again"))

    assert len(hashes.of(verse)) == 64


def test_only_files_that_a_package_reads_ask_for_it(make, monkeypatch):
    monkeypatch.setattr("data.prepare.is_installed", lambda package: False)
    config = make(clean=())

    check_packages(config, [Path("notes.parquet.txt"), Path("a.zst.md")])
    for name, package in (("a.PARQUET", "pyarrow"), ("a.txt.zst", "backports.zstd"), ("a.arrow.gz", "pyarrow")):
        with pytest.raises(DataError, match=package):
            check_packages(config, [Path(name)])


def test_files_whose_names_are_not_utf8_are_read(make, tmp_path):
    (tmp_path / "in").mkdir()
    with open(os.fsencode(tmp_path / "in") + "/诗集.txt".encode("gbk"), "w", encoding="utf-8") as file:
        file.write("床前明月光，疑是地上霜。\n" * 20)
    config = make(path=str(tmp_path / "in"), chapters=None, clean=(), validation=ValidationConfig(ratio=0.2))

    folder = prepare(config)

    assert prepare(config) == folder
    assert token_store.read_manifest(folder)["inputs"][0]["name"] == r"ʫ\udcbc\udcaf.txt"
