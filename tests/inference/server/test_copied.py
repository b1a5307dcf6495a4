"""What the server says of a text that is copied, and when it has nothing to compare it with."""

from __future__ import annotations

from pathlib import Path

import pytest

from data import prepare
from inference.server.copied import MAX_CHARACTERS, CopyFinder
from inference.server.errors import ApiError
from tests import processes
from tests.inference.evaluation.conftest import data_config


def test_a_stretch_of_the_corpus_is_found_in_a_text(verse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finder = CopyFinder(prepare.prepare(data_config(verse, tmp_path)))
    processes.wait_until(lambda: finder.available, "the index")
    line = verse.read_text(encoding="utf-8").splitlines()[1][:50]
    found = finder.copied(f"ABC{line}XYZ")
    assert [(span.start, span.end) for span in found.spans] == [(3, 53)]
    assert line[:20] in found.spans[0].source
    assert found.share == pytest.approx(50 / 56)
    assert finder.copied("Nothing of this is in it, not one bit.").share == 0
    with pytest.raises(ApiError, match=f"at most {MAX_CHARACTERS} are looked up"):
        finder.copied("红" * (MAX_CHARACTERS + 1))
    processes.wait_until(lambda: "/v1/copied looks into" in capsys.readouterr().err, "the line that says so")


def test_without_a_corpus_the_answer_is_404_and_the_log_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finder = CopyFinder(tmp_path)
    said = ""

    def told() -> bool:
        nonlocal said
        said += capsys.readouterr().err
        return "/v1/copied is not available: " in said

    processes.wait_until(told, "the reason")
    assert not finder.available
    with pytest.raises(ApiError, match="its log says why") as caught:
        finder.copied("红")
    assert caught.value.status_code == 404
    assert str(tmp_path) not in caught.value.detail


def test_a_corpus_too_large_for_the_memory_is_not_said_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_large(model: Path) -> None:
        raise MemoryError

    monkeypatch.setattr("inference.server.copied.find_training_text", too_large)
    finder = CopyFinder(tmp_path)
    processes.wait_until(lambda: "not available: memory ran out" in capsys.readouterr().err, "the reason")
    with pytest.raises(ApiError, match="its log says why"):
        finder.copied("红楼")
