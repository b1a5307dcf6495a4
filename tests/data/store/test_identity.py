"""A store is the store of exactly one text, prepared by exactly these rules; ranks find it without looking at the text."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.cleaning_config import DEFAULT_RULES
from data.config import DataConfig, TokenizerConfig, ValidationConfig
from data.documents import DataError
from data.prepare import main, plan, prepare
from data.serving.corpus import open_corpus
from data.source_config import SourceConfig
from data.steps import tasks
from data.steps.identify import FileHashes, identify
from data.store import token_store
from data.store.identity import Identity, changes, spell_out
from data.store.registry import RECORDS, find_store
from data.tokenizers import trainers
from ds_configs import build_section
from ds_configs.files import digest


@pytest.fixture
def make(verse, tmp_path):
    """A section for a text of one's own, with changes."""

    def made(**changes):
        section = {
            "path": str(tmp_path / "a/novel.txt"),
            "seq_length": 16,
            "clean": [],
            "validation": {"ratio": 0.1},
            "tokenizer": {"kind": "characters"},
            "directory": str(tmp_path / "stores"),
        }
        return build_section(DataConfig, {**section, **changes}, "data", "run.json")

    (tmp_path / "a").mkdir()
    (tmp_path / "a/novel.txt").write_text(verse.read_text(encoding="utf-8"), encoding="utf-8")
    return made


def tokenizer_folder(folder, extra=""):
    trainers.train(["床前明月光" + extra], TokenizerConfig(kind="characters"), folder)
    return {"kind": "existing", "path": str(folder)}


# The store of another corpus is never taken.


def test_a_mistyped_path_does_not_get_the_store_of_another_text_of_that_name(make, tmp_path):
    prepare(make())

    mistyped = make(path=str(tmp_path / "b/novel.txt"))
    assert find_store(mistyped) is None
    with pytest.raises(DataError, match=r"b/novel\.txt: no such file"):
        prepare(mistyped)
    with pytest.raises(DataError, match=r"Make it first: .* \(novel-\w{12} was made with other data\.path\.\)"):
        open_corpus(mistyped, seed=1)


def test_a_name_that_another_one_begins_with_does_not_get_its_store(make, tmp_path):
    (tmp_path / "a/nov-el.txt").write_bytes((tmp_path / "a/novel.txt").read_bytes())
    prepare(make(path=str(tmp_path / "a/nov-el.txt")))

    assert find_store(make(path=str(tmp_path / "a/nov.txt"))) is None
    with pytest.raises(DataError, match="no such file"):
        prepare(make(path=str(tmp_path / "a/nov.txt")))


def test_a_dataset_of_the_hub_does_not_get_the_store_of_another_owners(make, tmp_path):
    (tmp_path / "wiki").mkdir()
    (tmp_path / "wiki/part.txt").write_bytes((tmp_path / "a/novel.txt").read_bytes())
    prepare(make(path=str(tmp_path / "wiki")))

    assert find_store(make(path="hub:bob/wiki")) is None


def test_a_mistyped_tokenizer_does_not_get_the_store_of_another_one(make, tmp_path):
    prepare(make(tokenizer=tokenizer_folder(tmp_path / "tokenizer")))

    mistyped = make(tokenizer={"kind": "existing", "path": str(tmp_path / "tokeniser")})
    assert find_store(mistyped) is None
    with pytest.raises(DataError, match=r'data\.tokenizer\.path = "\S+/tokeniser": no tokenizer\.json'):
        prepare(mistyped)
    with pytest.raises(DataError, match=r"was made with other data\.tokenizer\.path"):
        open_corpus(mistyped, seed=1)


# A change is another store.


def test_a_changed_file_is_another_store_and_is_said(make, tmp_path, caplog):
    caplog.set_level("INFO")
    first = prepare(make())
    path = tmp_path / "a/novel.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("明", "暗"), encoding="utf-8")

    assert find_store(make()).folder == first, "ranks read what was prepared"
    second = prepare(make())
    assert second != first
    assert f"not the text that {first} was made from: novel.txt has changed" in caplog.text
    assert find_store(make()).folder == second


def test_a_change_that_keeps_size_and_time_of_a_file_is_noticed(make, tmp_path):
    first = prepare(make())
    path = tmp_path / "a/novel.txt"
    times = path.stat()
    path.write_text(path.read_text(encoding="utf-8").replace("明", "暗"), encoding="utf-8")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    assert path.stat().st_size == times.st_size
    assert plan(make()).folder != first


def test_a_text_that_changes_while_it_is_prepared_makes_no_store(make, tmp_path):
    path = tmp_path / "a/novel.txt"

    def changing(steps, num_workers, enough=None):
        results = tasks.run(steps, num_workers, enough)
        path.write_text(path.read_text(encoding="utf-8") + "又一行。\n", encoding="utf-8")
        return results

    with pytest.raises(DataError, match=r"the text changed while it was prepared \(novel\.txt has changed\)\. Start again"):
        prepare(make(), run=changing)
    assert find_store(make()) is None
    assert not [folder for folder in (tmp_path / "stores").iterdir() if folder.name.startswith((".novel", "novel")) and folder.is_dir()]


def test_the_old_text_put_back_is_the_old_store_again(make, tmp_path):
    path = tmp_path / "a/novel.txt"
    text = path.read_bytes()
    first = prepare(make())
    path.write_bytes(text * 2)
    assert prepare(make()) != first
    path.write_bytes(text)

    assert prepare(make()) == first == find_store(make()).folder


def test_the_same_bytes_read_as_another_format_are_another_store(make, tmp_path):
    for name in ("x.txt", "x.jsonl"):
        (tmp_path / name).write_text('{"text": "床前明月光"}\n', encoding="utf-8")
    hashes = FileHashes(tmp_path / "hashes.json")

    assert len({identify(make(path=str(tmp_path / name)), hashes).sha256 for name in ("x.txt", "x.jsonl")}) == 2


def test_another_tokenizer_at_the_same_path_is_another_store(make, tmp_path):
    section = make(tokenizer=tokenizer_folder(tmp_path / "tokenizer"))
    first = prepare(section)
    tokenizer_folder(tmp_path / "tokenizer", extra="疑是地上霜")

    now = plan(section)
    assert now.folder != first
    assert "tokenizer.json has changed" in changes(token_store.read_manifest(first), now.identity)


def test_of_several_files_the_changed_new_and_gone_ones_are_named(make, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("same", "changed", "gone"):
        (folder / f"{name}.txt").write_text(name * 200, encoding="utf-8")
    section = make(path=str(folder))
    first = prepare(section)
    (folder / "changed.txt").write_text("other " * 200, encoding="utf-8")
    (folder / "gone.txt").unlink()
    (folder / "new.txt").write_text("new", encoding="utf-8")

    said = changes(token_store.read_manifest(first), plan(section).identity)
    assert said == "changed.txt has changed, gone.txt is gone, new.txt is new"


def test_a_text_that_is_partly_gone_does_not_pass_for_the_whole(make, tmp_path):
    other = tmp_path / "a/other.txt"
    other.write_text("另一段文字。" * 50, encoding="utf-8")
    section = make(path=[str(tmp_path / "a/novel.txt"), str(other)])
    prepare(section)
    other.unlink()

    with pytest.raises(DataError, match=r"other\.txt: no such file"):
        prepare(section)


# Rules are spelled out.


def test_the_default_rules_are_spelled_out_with_their_parameters():
    section = {"corpus": "hongloumeng", "seq_length": 8, "tokenizer": {"kind": "characters"}}
    by_default = spell_out(build_section(DataConfig, section, "data", "run.json"))
    (source,) = by_default["sources"]

    assert {"rule": "min_length", "chars": 4} in source["clean"]
    assert [rule["rule"] for rule in source["clean"]] == [rule["rule"] for rule in DEFAULT_RULES]
    named = {**section, "clean": [dict(rule) for rule in DEFAULT_RULES]}
    assert spell_out(build_section(DataConfig, named, "data", "run.json")) == by_default, "naming the defaults changes nothing"


def test_one_text_named_in_either_form_is_one_store(make, tmp_path):
    flat = make()
    listed = make(path=None, clean=None, sources=[{"path": flat.path, "clean": []}])

    assert prepare(flat) == prepare(listed)


def test_weights_order_and_workers_do_not_make_another_store(make, tmp_path):
    (tmp_path / "a/other.txt").write_text("另一段文字。" * 50, encoding="utf-8")
    paths = (str(tmp_path / "a/novel.txt"), str(tmp_path / "a/other.txt"))
    hashes = FileHashes(tmp_path / "hashes.json")

    def mixture(first: float | None, **how):
        sources = tuple(SourceConfig(path=path, weight=first and weight) for path, weight in zip(paths, (first, 1), strict=True))
        values = {"seq_length": 8, "tokenizer": TokenizerConfig(kind="characters"), "validation": ValidationConfig(ratio=0.1), **how}
        return identify(DataConfig(sources=sources, **values), hashes).sha256

    assert mixture(2.0) == mixture(3.0, seq_length=9, windows="documents", tail="wrap", num_workers=3, max_bad_ratio=0.5, directory="x")
    assert mixture(2.0) != mixture(None)


def test_the_same_rules_still_give_the_tokens_they_gave_when_the_format_was_fixed(make, tmp_path):
    rows = [{"text": f"第{n}首　床前明月光\u200b，\r\n疑是地上霜。\n\n\n\n\n上一页", "title": f"其{n}"} for n in range(20)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    section = make(path=str(path), clean=None, template="{title}\n{text}", deduplicate={}, shuffle=True, validation={"ratio": 0.5})
    files = token_store.read_manifest(prepare(section))["files"]
    tokens = digest({name: file["sha256"] for name, file in files.items() if name.endswith(".bin")})

    # Another result of equal rules must not pass for the old one: raise FORMAT in data/store/token_store.py, and write both down here.
    assert (token_store.FORMAT, tokens[:12]) == (3, "6b128a079546")


# Written once, read by ranks.


def test_a_manifest_names_its_identity_and_a_rank_opens_the_store_by_it(make):
    folder = prepare(make())
    manifest = token_store.read_manifest(folder)

    assert folder.name == f"novel-{manifest['identity'][:12]}"
    assert Identity.from_manifest(manifest).sha256 == manifest["identity"] == plan(make()).identity.sha256
    corpus = open_corpus(make(), seed=1)
    assert corpus.text == {"store": folder.name, "identity": manifest["identity"], "tokenizer": manifest["tokenizer"]["sha256"]}


def test_a_rank_touches_no_raw_file(make, tmp_path):
    section = make(tokenizer=tokenizer_folder(tmp_path / "tokenizer"))
    prepare(section)
    raw = [str(tmp_path / "a"), str(tmp_path / "tokenizer")]
    program = f"""
import sys
from data.config import *
import data.serving.corpus
touched = []
def watch(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and any(str(arguments[0]).startswith(folder) for folder in {raw!r}):
        touched.append((event, arguments[0]))
sys.addaudithook(watch)
corpus = data.serving.corpus.open_corpus({section!r}, seed=1)
corpus.train.sample(0)
assert not touched, touched
open({section.path!r}).close()
assert touched, "the hook sees it"
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_checkout_that_moved_with_its_text_and_stores_finds_its_store_and_another_one_does_not(make, tmp_path, monkeypatch):
    first = tmp_path / "first"
    first.mkdir()
    (first / "novel.txt").write_bytes((tmp_path / "a/novel.txt").read_bytes())
    section = make(path="novel.txt", directory="stores")
    monkeypatch.chdir(first)
    prepare(section)
    moved = first.rename(tmp_path / "moved")
    monkeypatch.chdir(moved)
    assert find_store(section).folder == Path("stores") / plan(section).folder.name

    # Two checkouts with one folder of stores.
    other = tmp_path / "other"
    other.mkdir()
    shared = make(path="novel.txt", directory=str(moved / "stores"))
    assert find_store(shared) is not None
    monkeypatch.chdir(other)
    assert find_store(shared) is None


def test_a_damaged_record_is_one_line(make, tmp_path):
    prepare(make())
    (record,) = (tmp_path / "stores" / RECORDS).iterdir()
    record.write_text("{", encoding="utf-8")

    with pytest.raises(DataError, match=r"\.json: unreadable .* Delete it and prepare the data again"):
        open_corpus(make(), seed=1)


def test_a_store_of_an_earlier_format_is_refused_with_one_line_and_made_anew_by_the_command(make, tmp_path, capsys):
    folder = prepare(make())
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    earlier = {key: value for key, value in manifest.items() if key not in ("checksum", "identity", "tokenizer_inputs")} | {"format": 2}
    (folder / "manifest.json").write_text(json.dumps({**earlier, "checksum": digest(earlier)}), encoding="utf-8")
    old = folder.rename(folder.with_name("novel-0123456789ab"))
    for record in (tmp_path / "stores" / RECORDS).iterdir():
        record.unlink()

    with pytest.raises(DataError, match=r"Make it first: .*novel-0123456789ab was made by another version of this program"):
        open_corpus(make(), seed=1)
    run = tmp_path / "run.json"
    section = {"path": make().path, "seq_length": 16, "clean": [], "validation": {"ratio": 0.1}, "tokenizer": {"kind": "characters"}}
    run.write_text(json.dumps({"data": {**section, "directory": str(tmp_path / "stores")}}), encoding="utf-8")
    assert main([str(run)]) == 0
    assert Path(capsys.readouterr().out.strip()) == folder
    assert old.is_dir()
    assert open_corpus(make(), seed=1).folder == folder
