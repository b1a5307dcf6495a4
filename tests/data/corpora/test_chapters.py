"""Where a chapter begins: headings, numerals, tables of contents, volumes."""

import pytest

from data.corpora.chapters import read_numeral, split_chapters
from tests.data.extra_corpora import EXTRA, needs_extra

NUMERALS = {
    "一": 1, "十": 10, "十八": 18, "二十": 20, "一百零五": 105, "一百一十八": 118, "一一八": 118, "一〇五": 105,
    "廿三": 23, "118": 118, "１２": 12,
}  # fmt: skip


def texts_of(text):
    found = split_chapters(text)
    assert not found.missing
    return [chapter.text for chapter in found.all]


def novel(numbers, chars=200, unit="章"):
    return "".join(f"第{number}{unit} 题目\n{'正文' * (chars // 2)}\n" for number in numbers)


@pytest.mark.parametrize("numeral", NUMERALS)
def test_numerals_are_read_in_every_style(numeral):
    assert read_numeral(numeral) == NUMERALS[numeral]


def test_a_word_is_no_numeral():
    assert texts_of("第几回 甲\n乙\n第一回 丙\n丁") == ["第一回 丙\n丁"]


def test_only_the_expected_next_number_begins_a_chapter():
    text = "第一回　甄士隐\n甲\n第二回　贾夫人\n第一回中既已说过，不必再提\n第四回中又有别的话\n第三回 林黛玉\n丙"

    chapters = texts_of(text)

    assert [chapter[:3] for chapter in chapters] == ["第一回", "第二回", "第三回"]
    assert "第四回中" in chapters[1]


def test_a_long_line_that_begins_like_a_heading_is_prose():
    text = "第一回 甲\n" + "第二回" + "的话说得很长" * 10 + "\n第二回 乙\n正文"

    chapters = texts_of(text)

    assert len(chapters) == 2
    assert chapters[1].endswith("正文")


def test_a_table_of_contents_is_not_taken_for_the_text():
    contents = "\n".join(f"第{n}章 题目" for n in "一二三")
    body = "\n".join(f"第{n}章 题目\n{'正文' * 50}" for n in "一二三")

    chapters = texts_of(f"目录\n{contents}\n\n{body}")

    assert [len(chapter) > 100 for chapter in chapters] == [True] * 3


def test_nothing_of_the_text_is_lost_between_chapters():
    text = "第一章 甲\n一\n第二章 乙\n二\n\n三"

    assert "\n".join(texts_of(text)) == text


def test_volumes_that_each_begin_at_chapter_one_are_all_kept():
    text = "".join(f"第{volume}卷 卷名\n{novel(range(1, 11))}" for volume in range(1, 4))

    found = split_chapters(text)

    assert [len(volume) for volume in found.volumes] == [10, 10, 10]
    assert not found.missing
    assert "".join((found.before + "".join(chapter.text for chapter in found.all)).split()) == "".join(text.split())


def test_a_table_of_contents_of_several_volumes_is_left_out_and_shown():
    contents = "".join(f"第{number}章 题目\n" for _ in range(2) for number in range(1, 6))

    found = split_chapters(contents + novel(range(1, 6)) + novel(range(1, 6)))

    assert [len(volume) for volume in found.volumes] == [5, 5]
    assert found.before == contents


@pytest.mark.parametrize("unit", ["回", "章"])
@pytest.mark.parametrize(("absent", "place"), [((4,), "4"), ((34,), "34"), ((34, 35), "34 to 35"), ((119,), "119")])
def test_a_missing_heading_is_named_with_its_place(absent, place, unit):
    text = novel([number for number in range(1, 121) if number not in absent], unit=unit)

    (missing,) = split_chapters(text).missing

    lines = 2 * absent[0] - 3, 2 * absent[0] - 1
    assert missing == f"{place} between lines {lines[0]} and {lines[1]}"
    found = split_chapters(text, absent)
    assert not found.missing
    assert len(found.all) == 120 - len(absent)


def test_a_later_chapter_that_is_mentioned_is_no_gap():
    text = "第一回 甲\n第九回中再表\n第二回 乙\n第八回 之事\n丙\n第三回 丁\n戊"

    assert [text[:3] for text in texts_of(text)] == ["第一回", "第二回", "第三回"]


def test_a_number_that_is_there_twice_is_shown_and_its_text_kept():
    text = novel([1, 2, 2, 3])

    found = split_chapters(text)

    assert [chapter.number for chapter in found.all] == [1, 2, 3]
    assert found.passed_over == (5,)
    assert "".join("".join(chapter.text for chapter in found.all).split()) == "".join(text.split())


@pytest.mark.parametrize("numbers", [(1, 2, 3, 2, 3, 4), (1, 2, 3, 2, 3), (1, 2, 3, 4, 5, 3, 4, 5, 6)])
def test_a_volume_whose_beginning_was_not_read_is_missing_numbers(numbers):
    text = novel(numbers)
    lost = range(1, numbers[numbers.index(max(numbers[: len(numbers) // 2 + 1])) + 1])

    (missing,) = split_chapters(text).missing

    lines = 2 * max(numbers[: len(numbers) // 2 + 1]) - 1
    assert missing == f"{lost[0] if len(lost) == 1 else f'1 to {lost[-1]}'} between lines {lines} and {lines + 2}"


def test_a_volume_may_lack_its_first_chapter_if_that_is_said():
    text = novel((1, 2, 3, 2, 3, 4))

    found = split_chapters(text, absent=(1,))

    assert [[chapter.number for chapter in volume] for volume in found.volumes] == [[1, 2, 3], [2, 3, 4]]
    assert not found.missing


@pytest.mark.parametrize("numbers", [(1, 2, 2, 3, 3, 4), (1, 2, 3, 2, 4, 5)])
def test_single_numbers_that_are_there_twice_are_no_volumes(numbers):
    found = split_chapters(novel(numbers))

    assert not found.missing
    assert [chapter.number for chapter in found.all] == sorted(set(numbers))


def test_a_text_may_begin_in_the_middle():
    found = split_chapters(novel(range(81, 121)))

    assert [chapter.number for chapter in found.all] == list(range(81, 121))


def test_a_text_without_headings_has_no_chapters():
    assert texts_of("却说宝玉") == []


@needs_extra
def test_another_edition_has_all_its_chapters():
    found = sorted(EXTRA.glob("*120_chapters*.txt"))
    if not found:
        pytest.skip("no novel of 120 chapters there")

    chapters = texts_of(found[0].read_text(encoding="utf-8"))

    assert len(chapters) == 120
    assert min(map(len, chapters)) > 2000
