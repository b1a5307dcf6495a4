import os
from pathlib import Path

import pytest

from data.chapters import read_numeral, split_chapters

NUMERALS = {
    "一": 1, "十": 10, "十八": 18, "二十": 20, "一百零五": 105, "一百一十八": 118, "一一八": 118, "一〇五": 105,
    "廿三": 23, "118": 118, "１２": 12,
}  # fmt: skip


@pytest.mark.parametrize("numeral", NUMERALS)
def test_numerals_are_read_in_every_style(numeral):
    assert read_numeral(numeral) == NUMERALS[numeral]


def test_a_word_is_no_numeral():
    assert read_numeral("几") is None


def test_only_the_expected_next_number_begins_a_chapter():
    text = "第一回　甄士隐\n甲\n第二回　贾夫人\n第一回中既已说过，不必再提\n第四回中又有别的话\n第三回 林黛玉\n丙"

    chapters = split_chapters(text)

    assert [chapter[:3] for chapter in chapters] == ["第一回", "第二回", "第三回"]
    assert "第四回中" in chapters[1]


def test_a_long_line_that_begins_like_a_heading_is_prose():
    text = "第一回 甲\n" + "第二回" + "的话说得很长" * 10 + "\n第二回 乙\n正文"

    chapters = split_chapters(text)

    assert len(chapters) == 2
    assert chapters[1].endswith("正文")


def test_a_table_of_contents_is_not_taken_for_the_text():
    contents = "\n".join(f"第{n}章 题目" for n in "一二三")
    body = "\n".join(f"第{n}章 题目\n{'正文' * 50}" for n in "一二三")

    chapters = split_chapters(f"目录\n{contents}\n\n{body}")

    assert [len(chapter) > 100 for chapter in chapters] == [True] * 3


def test_nothing_of_the_text_is_lost_between_chapters():
    text = "第一章 甲\n一\n第二章 乙\n二\n\n三"

    assert "\n".join(split_chapters(text)) == text


def test_a_text_without_headings_has_no_chapters():
    assert split_chapters("却说宝玉") == []


@pytest.mark.skipif("EXTRA_CORPORA" not in os.environ, reason="EXTRA_CORPORA names no folder with more corpora")
def test_another_edition_has_all_its_chapters():
    found = sorted(Path(os.environ["EXTRA_CORPORA"]).glob("*120_chapters*.txt"))
    if not found:
        pytest.skip("no novel of 120 chapters there")

    chapters = split_chapters(found[0].read_text(encoding="utf-8"))

    assert len(chapters) == 120
    assert min(map(len, chapters)) > 2000
