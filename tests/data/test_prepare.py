import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data import prepare as prepare_module
from data import store, tokenizer
from data.config import (
    ChaptersConfig,
    DataConfig,
    PackConfig,
    ReverseConfig,
    SourceConfig,
    TokenizerConfig,
    ValidationConfig,
)
from data.dataset import open_corpus
from data.documents import DataError
from data.duplicates_config import DeduplicateConfig
from data.prepare import main, prepare
from data.prepared import find_store, record_path
from tests import processes

CHARACTERS = TokenizerConfig(kind="characters")


@pytest.fixture
def make(verse, tmp_path):
    """A configuration for the verse file, with changes."""

    def made(**changes):
        values = {
            "seq_length": 16,
            "tokenizer": CHARACTERS,
            "path": str(verse),
            "chapters": ChaptersConfig(),
            "validation": ValidationConfig(last_documents=2),
            "directory": str(tmp_path / "stores"),
        }
        return DataConfig(**{**values, **changes})

    return made


def write_documents(folder, count, seed=0):
    """A folder of `count` short text files, all different."""
    folder.mkdir()
    draw = np.random.default_rng(seed)
    for number in range(count):
        characters = "".join(chr(code) for code in draw.integers(0x4E00, 0x4F00, 60))
        (folder / f"{number:04d}.txt").write_text(characters, encoding="utf-8")
    return str(folder)


def texts_of(folder, split="train"):
    manifest = store.read_manifest(folder)
    ours = tokenizer.load(folder / "tokenizer")
    texts = []
    for stream in manifest["splits"][split]["streams"]:
        for name in stream["shards"]:
            shard = store.Shard(folder / name)
            ids = shard.read(0, shard.num_tokens)
            texts += [ours.decode(part.tolist()) for part in np.split(ids, np.cumsum(shard.document_sizes)[:-1])]
    return texts


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


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
        "import sys; from data.config import *; from data.prepared import find_store\n"
        f"find_store({make()!r})\n"
        "assert not {'torch', 'deepspeed', 'transformers', 'tokenizers', 'pyarrow'} & set(sys.modules), sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_damaged_store_is_refused_by_the_next_preparation(make):
    path = prepare(make()) / "train-00000.bin"
    data = bytearray(path.read_bytes())
    data[3] ^= 64
    path.write_bytes(data)

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


def test_a_path_or_corpus_that_does_not_exist_is_refused(make):
    with pytest.raises(DataError, match=r"no such file"):
        prepare(make(path="nowhere/at all.txt"))
    with pytest.raises(DataError, match=r'data\.corpus = "sanguo" is not known\. Known: hongloumeng'):
        prepare(make(path=None, corpus="sanguo"))


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
    assert main([]) == 2


def test_the_command_prints_where_the_store_is(make, verse, tmp_path, capsys):
    section = {"path": str(verse), "seq_length": 8, "tokenizer": {"kind": "characters"}, "clean": [], "directory": str(tmp_path / "stores")}
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"data": section}), encoding="utf-8")

    assert main([str(path)]) == 0
    assert (Path(capsys.readouterr().out.strip()) / "manifest.json").is_file()


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


def test_text_that_the_rules_drop_altogether_is_said_to_be_dropped(make):
    with pytest.raises(DataError, match=r"no text is left of 20 documents, all dropped by data\.clean"):
        prepare(make(clean=({"rule": "min_length", "chars": 100_000},)))


# Splits, budgets and sources.


def test_a_share_of_many_documents_is_chosen_by_their_text(make, tmp_path):
    documents = write_documents(tmp_path / "many", 300)
    config = make(path=documents, chapters=None, validation=ValidationConfig(ratio=0.1), clean=())

    held_out = texts_of(prepare(config), "valid")
    again = texts_of(prepare(dataclasses.replace(config, shuffle=True)), "valid")

    assert 15 <= len(held_out) <= 45  # 30 expected; 3 standard deviations are 16
    assert sorted(held_out) == sorted(again)


def test_of_a_single_document_the_end_is_held_out(make, verse):
    folder = prepare(make(chapters=None, validation=ValidationConfig(ratio=0.1), clean=()))

    (train,), (valid,) = texts_of(folder, "train"), texts_of(folder, "valid")

    assert train + valid == verse.read_text(encoding="utf-8")
    assert train.endswith("\n")
    assert 0.05 < len(valid) / len(train) < 0.12


def test_budgets_end_both_splits_between_documents(make, tmp_path):
    documents = write_documents(tmp_path / "many", 300)
    validation = ValidationConfig(ratio=0.2, max_tokens=500)

    manifest = store.read_manifest(prepare(make(path=documents, chapters=None, validation=validation, max_train_tokens=3000, clean=())))

    assert manifest["splits"]["train"]["tokens"] == 49 * 61  # of 61 tokens each, end token included
    assert manifest["splits"]["valid"] | {"streams": 0} == {"tokens": 8 * 61, "documents": 8, "chars": 8 * 60, "streams": 0}


def big_lines(path, count, seed=0):
    """A JSONL file of documents, long enough for several shards of 1 MiB."""
    draw = np.random.default_rng(seed)
    codes = draw.integers(0x4E00, 0x4E80, (count, 1000))
    path.write_text("".join(json.dumps({"content": "".join(map(chr, row))}, ensure_ascii=False) + "\n" for row in codes), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """3.6 MB of documents, some of which are there twice."""
    path = tmp_path_factory.mktemp("large") / "documents.jsonl"
    big_lines(path, 1150)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines + lines[:50]), encoding="utf-8")
    return str(path)


def large_config(large, directory, **changes):
    values = {
        "seq_length": 64,
        "tokenizer": CHARACTERS,
        "path": large,
        "shuffle": True,
        "shard_mib": 1,
        "deduplicate": DeduplicateConfig(),
        "validation": ValidationConfig(last_shards=1),
        "clean": (),
        "directory": str(directory),
    }
    return DataConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def whole(large, tmp_path_factory):
    """The store of `large_config`, made in one go by one process."""
    return prepare(large_config(large, tmp_path_factory.mktemp("whole")))


def test_the_last_shard_is_held_out_and_copies_are_gone(whole):
    train, valid = texts_of(whole, "train"), texts_of(whole, "valid")

    assert len(train) + len(valid) == len({*train, *valid}) == 1150
    assert 200 < len(valid) < 400  # one of four shards


def test_shuffling_changes_the_order_of_documents(large, whole):
    read = [json.loads(line)["content"] for line in Path(large).read_text(encoding="utf-8").splitlines()]
    order = [read.index(text) for text in texts_of(whole)[:50]]

    assert order != sorted(order)


def test_any_number_of_workers_makes_the_same_store(large, whole, tmp_path):
    made = prepare(large_config(large, tmp_path, num_workers=3))

    assert made.name == whole.name
    assert contents(made) == contents(whole)


def kill_at_random(config_file, seconds):
    """Start a preparation and kill it; True if it had finished by itself."""
    with Path(config_file).with_suffix(".log").open("wb") as log:
        process = processes.start([sys.executable, "-m", "data.prepare", config_file], stdout=log, stderr=log)
        try:
            assert process.wait(timeout=seconds) == 0, Path(log.name).read_text(encoding="utf-8")
            return True
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return False


@pytest.mark.parametrize("num_kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_preparation_killed_at_random_moments_ends_with_the_same_store(large, whole, tmp_path, num_kills):
    config_file = write_config(large_config(large, tmp_path / "stores", num_workers=2), tmp_path / "run.json")
    store_folder = tmp_path / "stores" / whole.name
    draw = np.random.default_rng(num_kills)

    done = 0
    while done < num_kills:
        # Start-up takes a second or two, the whole work some five more. What is killed goes on; what gets to the end begins anew.
        if kill_at_random(config_file, draw.uniform(0.5, 6)):
            assert contents(store_folder) == contents(whole)
            shutil.rmtree(store_folder)
        else:
            done += 1
    assert kill_at_random(config_file, processes.LIMIT_SECONDS)

    assert contents(store_folder) == contents(whole)


def write_config(config, path):
    section = {key: value for key, value in json.loads(json.dumps(dataclasses.asdict(config))).items() if value is not None}
    path.write_text(json.dumps({"data": section}), encoding="utf-8")
    return str(path)


def test_two_preparations_at_once_make_one_store(large, whole, tmp_path):
    config_file = write_config(large_config(large, tmp_path / "stores"), tmp_path / "run.json")
    command = [sys.executable, "-m", "data.prepare", config_file]

    both = [processes.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate() for process in both]

    assert [process.returncode for process in both] == [0, 0]
    assert len({out for out, _ in outputs}) == 1
    assert sum("is up to date" in error for _, error in outputs) == 1


def test_packed_rows_hold_every_token_but_the_unfinished_last_row(make, whole, large, tmp_path):
    import pyarrow.parquet

    folder = prepare(large_config(large, tmp_path, pack=PackConfig(length=32), documents="parquet"))
    split = store.read_manifest(folder)["splits"]["train"]
    rows = pyarrow.parquet.read_table(folder / "packed-train.parquet")["input_ids"].combine_chunks().values.to_numpy()
    stream = open_corpus(large_config(large, tmp_path, pack=PackConfig(length=32), documents="parquet"), 1).train._windows[0]._stream

    assert split["packed"]["left_out_tokens"] < 32
    assert len(rows) + split["packed"]["left_out_tokens"] == split["tokens"] == stream.num_tokens
    np.testing.assert_array_equal(rows, stream.read(0, len(rows)))
    kept = [
        text
        for path in sorted((folder / "documents").glob("train-*.parquet"))
        for text in pyarrow.parquet.read_table(path)["text"].to_pylist()
    ]
    assert kept == texts_of(whole)


def test_weighted_sources_are_mixed_by_weight(make, verse, tmp_path):
    other = write_documents(tmp_path / "other", 100)
    sources = (SourceConfig(path=str(verse), chapters=ChaptersConfig(), weight=1), SourceConfig(path=other, weight=3))
    config = make(path=None, chapters=None, sources=sources, validation=ValidationConfig(ratio=0.1), clean=())
    folder = prepare(config)
    corpus = open_corpus(config, seed=1)

    rows = [corpus.tokenizer.decode(corpus.train.sample(index).tolist()) for index in range(1000)]

    assert [stream["name"] for stream in store.read_manifest(folder)["splits"]["train"]["streams"]] == ["verse", "other"]
    assert abs(sum("，" in row or "。" in row for row in rows) - 250) <= 10  # verse has a comma in every row, but for chance
    assert corpus.valid.num_rows > 0


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


def test_a_store_of_another_program_is_used_as_it_is(write_as_megatron, make, whole, tmp_path):
    ids = [list(range(5, 25)) * 3, list(range(20)), list(range(30)), list(range(9))]
    write_as_megatron(tmp_path / "theirs", ids, [0, 1, 2, 3, 4], 8, np.uint16)
    existing = TokenizerConfig(kind="existing", path=str(whole / "tokenizer"))
    config = make(
        path=None, chapters=None, store=str(tmp_path / "theirs"), tokenizer=existing, validation=ValidationConfig(last_documents=2)
    )

    prepare(config)
    corpus = open_corpus(config, seed=1)

    assert corpus.train.num_tokens == 80
    assert corpus.valid.num_tokens == 39
    assert corpus.valid._stream.read(0, 39).tolist() == ids[2] + ids[3]
    assert corpus.valid.num_chars(num_replicas=1, micro_batch=1) > 0


def test_a_store_made_with_a_larger_vocabulary_than_the_tokenizers_is_refused(write_as_megatron, make, whole, tmp_path):
    write_as_megatron(tmp_path / "theirs", [[1, 60000] * 50, [1] * 50], [0, 1, 2], 8, np.uint16)
    existing = TokenizerConfig(kind="existing", path=str(whole / "tokenizer"))
    config = make(
        path=None, chapters=None, store=str(tmp_path / "theirs"), tokenizer=existing, validation=ValidationConfig(last_documents=1)
    )

    with pytest.raises(DataError, match=r"holds the id 60000, but the tokenizer at .* has 130\. It was made with another tokenizer"):
        prepare(config)


def test_an_existing_tokenizer_makes_the_store_and_another_one_another_store(make, whole, tmp_path):
    existing = TokenizerConfig(kind="existing", path=str(whole / "tokenizer"), add_bos=True)
    folder = prepare(make(tokenizer=existing, clean=()))
    first = store.Shard(folder / "train-00000").read(0, 1)

    assert first[0] == tokenizer.load(folder / "tokenizer").bos_id
    assert folder != prepare(make(tokenizer=dataclasses.replace(existing, add_bos=False), clean=()))


def test_the_report_tells_what_every_rule_dropped(make, tmp_path):
    documents = write_documents(tmp_path / "many", 50)
    for number in range(7):
        (tmp_path / "many" / f"short {number}.txt").write_text("短" * (number + 1), encoding="utf-8")
    rules = ({"rule": "min_length", "chars": 20},)

    folder = prepare(make(path=documents, chapters=None, validation=ValidationConfig(ratio=0.3), clean=rules))
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))

    read, cleaned = report["steps"]
    assert (read["documents"], cleaned["documents"], cleaned["dropped"]) == (57, 50, 7)
    assert [sample["text"] for sample in cleaned["samples"]] == ["短", "短短", "短短短", "短短短短", "短短短短短"]
    splits = report["splits"]
    assert splits["train"]["documents"] + splits["valid"]["documents"] == 50
    assert splits["train"]["chars"] + splits["valid"]["chars"] == cleaned["chars"] == 50 * 60
    assert report["tokens"]["frequent"][0]["token"] == "<|endoftext|>"
    assert (folder / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert "dropped by clean: min_length, for example:" in (folder / "report.txt").read_text(encoding="utf-8")


def test_the_text_is_hashed_once(make, verse, tmp_path, monkeypatch):
    prepare(make())
    hashes = prepare_module.FileHashes(tmp_path / "stores" / ".hashes.json")
    monkeypatch.setattr("data.hashes.sha256_of", lambda path: pytest.fail("was hashed again"))

    assert len(hashes.of(verse)) == 64
