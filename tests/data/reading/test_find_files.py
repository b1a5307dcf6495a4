"""Which files a path means."""

import json
import os
import tempfile

import pytest

from data.documents import DataError
from data.reading import find_files as find_files_module
from data.reading.find_files import find_files
from tests.data.reading.poems import POEMS, TEXTS, arrow, read_all, texts


def test_a_hub_dataset_without_a_network_says_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(DataError, match="give a folder instead"):
        find_files(["hub:nobody/nothing"])


def test_a_link_to_a_folder_above_itself_makes_no_copies(tmp_path, caplog):
    for name in ("texts/a.txt", "texts/sub/b.txt", "elsewhere/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    (tmp_path / "texts" / "loop").symlink_to(tmp_path / "texts")
    (tmp_path / "texts" / "sub" / "loop").symlink_to(tmp_path / "texts" / "sub")
    (tmp_path / "texts" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "texts" / "z.txt").symlink_to(tmp_path / "texts" / "a.txt")

    for path in (f"{tmp_path}/texts/**/*.txt", f"{tmp_path}/texts/**", f"{tmp_path}/texts", f"{tmp_path}/*"):
        found = find_files([path])

        assert sorted(file.resolve().name for file in found) == ["a.txt", "b.txt", "c.txt"], path
    assert "1 more names of files that are read already" in caplog.text


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: path.symlink_to(path.with_name("gone.txt")), "links that lead nowhere"),
        (os.mkfifo, "pipes, sockets or devices"),
    ],
)
def test_what_is_no_file_is_not_waited_for_and_counted(make, what, tmp_path, caplog):
    (tmp_path / "a.txt").write_text("文", encoding="utf-8")
    make(tmp_path / "b.txt")

    for path in (f"{tmp_path}", f"{tmp_path}/*.txt", f"{tmp_path}/**"):
        caplog.clear()
        find_files_module._say_once.cache_clear()
        assert [file.name for file in find_files([path])] == ["a.txt"], path
        assert f"1 {what}, such as {tmp_path / 'b.txt'}, are left out" in caplog.text, path
    with pytest.raises(DataError, match="no such file"):
        find_files([f"{tmp_path}/b.txt"])


def test_what_is_left_out_is_said_once_although_a_preparation_looks_four_times(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("文", encoding="utf-8")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")

    for _ in range(4):
        find_files([str(tmp_path)])

    assert len(caplog.messages) == 1


def test_of_several_names_of_a_file_one_that_says_its_format_is_read(tmp_path, caplog):
    cache = tmp_path / "datasets--owner--name"  # As the hub's client keeps it.
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots/0a1b/data").mkdir(parents=True)
    (cache / "blobs/5e0d").write_text("文", encoding="utf-8")
    (cache / "snapshots/0a1b/data/train.txt").symlink_to("../../../blobs/5e0d")

    assert find_files([str(cache)]) == [cache / "snapshots/0a1b/data/train.txt"]
    assert f"1 more names of files that are read already, such as {cache / 'blobs/5e0d'}, are left out" in caplog.text


def test_a_page_about_a_dataset_beside_its_files_is_read_as_a_document_which_is_said(tmp_path, caplog):
    for name in ("train.jsonl", "README.md", "license.txt", "readme_first.txt"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    find_files_module._say_once.cache_clear()
    assert len(find_files([str(tmp_path)])) == 4
    (said,) = caplog.messages
    assert said.startswith(f"2 files named as pages about data, such as {tmp_path / 'README.md'}, are read as documents; a pattern")
    find_files_module._say_once.cache_clear()
    find_files([str(tmp_path / "*.jsonl"), str(tmp_path / "README.md")])
    assert len(caplog.messages) == 1, "of a file that is named nothing is said"


def test_a_home_that_no_shell_has_filled_in_is_explained():
    with pytest.raises(DataError, match="A ~ is not your home here: write the path in full"):
        find_files(["~/no novel.txt"])


@pytest.fixture
def as_nobody():
    """A folder that everyone may enter, and this process without the rights of root."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        user = os.geteuid()
        yield folder, lambda: os.seteuid(65534 if user == 0 else user)
        os.seteuid(user)


@pytest.mark.parametrize(
    ("locked", "message"), [("a.txt", "1 of 2 files may not be read, the first: .*a.txt"), ("sub", "sub: this folder cannot")]
)
def test_what_may_not_be_read_is_refused_by_name(as_nobody, locked, message):
    folder, drop_rights = as_nobody
    os.mkdir(f"{folder}/sub")
    for name in ("a.txt", "sub/b.txt"):
        with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
            file.write("文")
    os.chmod(f"{folder}/{locked}", 0)
    drop_rights()

    with pytest.raises(DataError, match=message):
        find_files([folder])


@pytest.mark.parametrize("pattern", ["*/*.txt", "*/b.txt", "sub/b.txt", "**/*.txt"])
def test_a_pattern_passes_over_no_folder_that_may_not_be_looked_into(as_nobody, pattern):
    folder, drop_rights = as_nobody
    for name in ("sub", "other"):
        os.mkdir(f"{folder}/{name}")
        with open(f"{folder}/{name}/b.txt", "w", encoding="utf-8") as file:
            file.write("文")
    os.chmod(f"{folder}/sub", 0)
    drop_rights()

    with pytest.raises(DataError, match=r"sub: this folder cannot be read \(Permission denied\)\. Change"):
        find_files([f"{folder}/{pattern}"])


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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("state.json", '{"_data_files": [{"name": 1}]}', "is not described as a saved dataset is"),
        ("state.json", '{"_data_files": ["a.arrow"]}', "is not described as a saved dataset is"),
        ("state.json", '{"_data_files": [{"filename": "b.arrow"}]}', r"names \S+/b\.arrow, which is not there"),
        ("dataset_dict.json", '{"splits": 5}', "is not described as a saved dataset is"),
        ("dataset_dict.json", '{"splits": ["train"]}', r"names \S+/train, which is not there"),
    ],
)
def test_a_saved_dataset_that_is_described_wrongly_is_refused(name, content, message, tmp_path):
    save_dataset(tmp_path / "poems", POEMS)
    (tmp_path / "poems" / name).write_text(content, encoding="utf-8")

    with pytest.raises(DataError, match=message):
        find_files([str(tmp_path / "poems")])


def test_a_saved_dataset_whose_description_is_no_object_is_refused(tmp_path):
    save_dataset(tmp_path / "poems", POEMS)
    (tmp_path / "poems" / "state.json").write_text("[]", encoding="utf-8")

    with pytest.raises(ValueError, match=r"state\.json: holds no JSON object"):
        find_files([str(tmp_path / "poems")])


def test_of_a_hub_dataset_every_format_that_is_read_is_fetched_but_no_script(monkeypatch, tmp_path):
    asked = {}

    def download(name, **options):
        asked.update(options)
        (tmp_path / "a.csv.gz").write_bytes(b"x")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)

    assert [file.name for file in find_files(["hub:somebody/poems"])] == ["a.csv.gz"]
    assert {"*.parquet", "*.csv.gz", "*.ndjson", "*.arrow", "*.txt.zst"} <= set(asked["allow_patterns"])
    assert not {"*.py", "*.md"} & set(asked["allow_patterns"])
