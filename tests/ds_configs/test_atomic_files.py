"""Small files that anybody may have written."""

import errno
import fcntl
from pathlib import Path

import pytest

from ds_configs.atomic_files import lock, object_or_nothing, read_object, replacing_folder


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, "\udcff"])
def test_what_is_no_object_is_refused_with_the_files_name_or_taken_for_nothing(text, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=r"a\.json: (unreadable|holds no JSON object)"):
        read_object(path)
    assert object_or_nothing(path) == {}
    assert read_object(tmp_path / "b.json") == {}


def test_what_cannot_be_read_is_not_said_to_be_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, **options: object) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(ValueError, match=r"a\.json: unreadable \(\[Errno 5\] Input/output error: .*\)\.$"):
        read_object(tmp_path / "a.json", ". It was damaged; remove it.")


def test_a_folder_behind_a_link_is_replaced_and_not_the_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "folder").mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk/folder")
    with replacing_folder(tmp_path / "link") as folder:
        (folder / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "disk" / "folder").iterdir()] == ["new"]


def test_where_a_file_system_has_no_locks_this_is_said_and_work_goes_on(tmp_path, monkeypatch, caplog):
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock(tmp_path / ".lock", "waiting"):
        pass
    assert f"{tmp_path}: this file system has no locks" in caplog.text
