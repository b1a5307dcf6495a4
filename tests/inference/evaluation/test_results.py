"""What several evaluations of one model write down at the same time."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from ds_configs.atomic_files import write_text
from inference.evaluation import results
from inference.exporting import model_card

ABOUT = {"checkpoint": "step00000005", "step": 5, "fingerprint": "f5"}


def names(folder: Path) -> set[str]:
    return {section["name"] for section in results.read(folder, "f5")}


@pytest.mark.processes
def test_of_evaluations_that_end_together_no_section_is_lost(tmp_path: Path) -> None:
    wanted = [f"section {number}" for number in range(60)]

    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as processes:
        list(processes.map(results.add, [tmp_path] * 60, wanted, [{"loss": 1.0}] * 60, [ABOUT] * 60))

    assert names(tmp_path) == set(wanted)


def test_a_damaged_file_takes_no_figures_out_of_a_card(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "README.md").write_text("<!-- evaluation --><!-- end of evaluation -->", encoding="utf-8")
    results.add(tmp_path, "ours", {"loss": 1.0}, ABOUT)
    model_card.renew_evaluation(tmp_path, tmp_path, "f5")
    (tmp_path / results.FILE).write_text('{"sections": [],}', encoding="utf-8")
    model_card.renew_evaluation(tmp_path, tmp_path, "f5")
    assert "### ours" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert [f"{tmp_path / results.FILE}: unreadable" in message for message in caplog.messages] == [True]
    with pytest.raises(ValueError, match="unreadable"):
        results.add(tmp_path, "ours", {"loss": 1.0}, ABOUT)


def test_a_card_that_another_evaluation_renews_meanwhile_has_the_sections_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("<!-- evaluation --><!-- end of evaluation -->", encoding="utf-8")

    def late(path: Path, text: str) -> None:
        if len(names(tmp_path)) == 1:
            results.add(tmp_path, "the other's", {"loss": 2.0}, ABOUT)
            model_card.renew_evaluation(tmp_path, tmp_path, "f5")
        write_text(path, text)

    monkeypatch.setattr("inference.exporting.model_card.write_text", late)
    results.add(tmp_path, "ours", {"loss": 1.0}, ABOUT)
    model_card.renew_evaluation(tmp_path, tmp_path, "f5")

    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "### ours" in text
    assert "### the other's" in text
