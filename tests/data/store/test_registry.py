"""A store is recorded when it is made; ranks open it by the record and read no raw text."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data.batches.datasets import open_datasets
from data.documents import DataError
from data.prepare import main, plan, prepare
from data.store import token_store
from data.store.identity import Identity
from data.store.registry import RECORDS, find_store
from ds_configs.atomic_files import digest
from tests.data.stores import character_tokenizer


def test_a_manifest_names_its_identity_and_a_rank_opens_the_store_by_it(make_novel):
    folder = prepare(make_novel())
    manifest = token_store.read_manifest(folder)

    assert folder.name == f"novel-{manifest['identity'][:12]}"
    assert Identity.from_manifest(manifest).sha256 == manifest["identity"] == plan(make_novel()).identity.sha256
    datasets = open_datasets(make_novel(), seed=1)
    assert datasets.text == {"store": folder.name, "identity": manifest["identity"], "tokenizer": manifest["tokenizer"]["sha256"]}


def test_a_rank_touches_no_raw_file(make_novel, tmp_path):
    section = make_novel(tokenizer=character_tokenizer(tmp_path / "tokenizer"))
    prepare(section)
    raw = [str(tmp_path / "a"), str(tmp_path / "tokenizer")]
    program = f"""
import sys
from data.config import *
import data.batches.datasets
touched = []
def watch(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and any(str(arguments[0]).startswith(folder) for folder in {raw!r}):
        touched.append((event, arguments[0]))
sys.addaudithook(watch)
datasets = data.batches.datasets.open_datasets({section!r}, seed=1)
datasets.train.sample(0)
assert not touched, touched
open({section.path!r}).close()
assert touched, "the hook sees it"
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_checkout_that_moved_with_its_text_and_stores_finds_its_store_and_another_one_does_not(make_novel, tmp_path, monkeypatch):
    first = tmp_path / "first"
    first.mkdir()
    (first / "novel.txt").write_bytes((tmp_path / "a/novel.txt").read_bytes())
    section = make_novel(path="novel.txt", directory="stores")
    monkeypatch.chdir(first)
    prepare(section)
    moved = first.rename(tmp_path / "moved")
    monkeypatch.chdir(moved)
    assert find_store(section).folder == Path("stores") / plan(section).folder.name

    # Two checkouts with one folder of stores.
    other = tmp_path / "other"
    other.mkdir()
    shared = make_novel(path="novel.txt", directory=str(moved / "stores"))
    assert find_store(shared) is not None
    monkeypatch.chdir(other)
    assert find_store(shared) is None


def test_a_damaged_record_is_one_line(make_novel, tmp_path):
    prepare(make_novel())
    (record,) = (tmp_path / "stores" / RECORDS).iterdir()
    record.write_text("{", encoding="utf-8")

    with pytest.raises(ValueError, match=r"\.json: unreadable .* Delete it and prepare the data again"):
        open_datasets(make_novel(), seed=1)


def test_a_store_of_an_earlier_format_is_refused_with_one_line_and_made_anew_by_the_command(make_novel, tmp_path, capsys):
    folder = prepare(make_novel())
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    earlier = {key: value for key, value in manifest.items() if key not in ("checksum", "identity", "tokenizer_inputs")} | {"format": 2}
    (folder / "manifest.json").write_text(json.dumps({**earlier, "checksum": digest(earlier)}), encoding="utf-8")
    old = folder.rename(folder.with_name("novel-0123456789ab"))
    for record in (tmp_path / "stores" / RECORDS).iterdir():
        record.unlink()

    with pytest.raises(DataError, match=r"Make it first: .*novel-0123456789ab was made by another version of this program"):
        open_datasets(make_novel(), seed=1)
    run = tmp_path / "run.json"
    section = {"path": make_novel().path, "seq_length": 16, "clean": [], "validation": {"ratio": 0.1}, "tokenizer": {"kind": "characters"}}
    run.write_text(json.dumps({"data": {**section, "directory": str(tmp_path / "stores")}}), encoding="utf-8")
    assert main([str(run)]) == 0
    assert Path(capsys.readouterr().out.strip()) == folder
    assert old.is_dir()
    assert open_datasets(make_novel(), seed=1).folder == folder
