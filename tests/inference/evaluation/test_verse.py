"""Poems that everybody knows keep the rules that they are known to keep, and break those that they are known to break."""

from __future__ import annotations

import pytest

from inference.evaluation.generated import variety
from inference.evaluation.verse import _groups, figures, judge, rhymes, tones, verse_lines

GUANQUE = "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"
BAIDI = "朝辞白帝彩云间，千里江陵一日还。两岸猿声啼不住，轻舟已过万重山。"
CHUNWANG = "国破山河在，城春草木深。感时花溅泪，恨别鸟惊心。烽火连三月，家书抵万金。白头搔更短，浑欲不胜簪。"
DENGGAO = "风急天高猿啸哀，渚清沙白鸟飞回。无边落木萧萧下，不尽长江滚滚来。万里悲秋常作客，百年多病独登台。艰难苦恨繁霜鬓，潦倒新停浊酒杯。"
JIANDE = "移舟泊烟渚，日暮客愁新。野旷天低树，江清月近人。"
GUYUANCAO = "离离原上草，一岁一枯荣。野火烧不尽，春风吹又生。远芳侵古道，晴翠接荒城。又送王孙去，萋萋满别情。"


def verdict(poem: str):
    found = judge(verse_lines(poem))
    assert found is not None
    return found


def test_the_table_has_106_groups_and_keeps_the_entering_tone_apart():
    assert len({group for group, _ in _groups()}) == 106
    # All four are level in the modern language.
    assert [tones(character) for character in "白国一发"] == [frozenset("仄")] * 4
    assert rhymes("流") & rhymes("楼") == {"下平聲十一尤"}
    assert tones("看") == {"平", "仄"}
    assert tones("a") == rhymes("a") == frozenset()


def test_a_simplified_character_has_the_groups_of_its_traditional_ones():
    assert rhymes("钟") == rhymes("鐘") | rhymes("鍾")
    assert rhymes("楼") == rhymes("樓")


@pytest.mark.parametrize(
    ("poem", "form", "pattern", "rhyme"),
    [
        (GUANQUE, "五言绝句", "仄起首句不入韵", "下平聲十一尤"),
        (BAIDI, "七言绝句", "平起首句入韵", "上平聲十五刪"),
        (CHUNWANG, "五言律诗", "仄起首句不入韵", "下平聲十二侵"),
        (DENGGAO, "七言律诗", "仄起首句入韵", "上平聲十灰"),
        (JIANDE, "五言绝句", "平起首句不入韵", "上平聲十一真"),  # 移舟泊烟渚: 平平仄平仄, made good in the line
        (GUYUANCAO, "五言律诗", "平起首句不入韵", "下平聲八庚"),  # 野火烧不尽: made good by 吹 in the next line
    ],
)
def test_regulated_poems_of_tang_keep_the_rules(poem, form, pattern, rhyme):
    found = verdict(poem)
    assert (found.form, found.pattern, found.rhyme) == (form, pattern, rhyme)
    assert found.unknown <= 1, "the table has no 啼"
    assert found.is_regulated, found


def test_traditional_characters_are_judged_the_same():
    assert verdict("白日依山盡，黃河入海流。欲窮千里目，更上一層樓。") == verdict(GUANQUE)


def test_an_old_style_quatrain_rhymes_and_breaks_the_pattern():
    found = verdict("床前明月光，疑是地上霜。举头望明月，低头思故乡。")
    assert found.rhyme == "下平聲七陽"
    assert found.wrong_tones
    assert not found.is_regulated


def test_a_broken_link_is_found_in_the_poem_known_for_it():
    found = verdict("渭城朝雨浥轻尘，客舍青青柳色新。劝君更尽一杯酒，西出阳关无故人。")
    assert found.not_linked == (3,)
    assert found.not_opposed == ()
    assert not found.is_regulated


def test_a_lone_level_tone_is_found():
    # 日: oblique where 黄 was level, and 入 is oblique too.
    assert verdict(GUANQUE.replace("黄河", "日河")).lone_level == (2,)
    assert verdict(GUANQUE.replace("黄河入", "日河西")).lone_level == ()


def test_three_level_tones_at_the_end_are_found():
    assert verdict(GUANQUE.replace("一层楼", "千层楼")).three_level == (4,)


def test_a_wrong_tone_is_found_where_it_is():
    assert verdict(GUANQUE.replace("黄河入海流", "黄日入海流")).wrong_tones == ((2, 2),)
    assert verdict(GUANQUE.replace("千里目", "千年心")).wrong_tones == ((3, 4), (3, 5))


def test_couplets_that_are_not_opposed_are_found():
    assert verdict(GUANQUE.replace("黄河", "黄日")).not_opposed == (2,)


def test_lines_that_do_not_rhyme_are_found():
    assert verdict(GUANQUE.replace("一层楼", "一层山")).rhyme is None
    assert verdict(GUANQUE.replace("一层楼", "一层流")).rhyme is None, "the same word twice is no rhyme"


def test_a_first_line_that_rhymes_is_told():
    assert verdict(BAIDI).first_line_rhymes
    assert not verdict(GUANQUE).first_line_rhymes


def test_verse_of_other_lengths_is_not_judged():
    assert judge(verse_lines("床前明月光，疑是地上霜。举头望月，低头思故乡。")) is None
    assert judge(verse_lines("白日依山尽，黄河入海流。")) is None


def test_a_title_is_no_line_of_the_poem():
    assert verse_lines(f"登鹳雀楼\n王之涣\n{GUANQUE}") == verse_lines(GUANQUE) == ["白日依山尽", "黄河入海流", "欲穷千里目", "更上一层楼"]


def test_figures_of_several_poems_are_shares_by_form():
    found = figures([GUANQUE, GUANQUE.replace("一层楼", "一层山"), BAIDI, "不是诗"])
    assert found["forms"]["poems"] == {"五言绝句": 2, "七言绝句": 1, "杂言": 1}
    assert found["verse"]["五言绝句"] | {"rhyme": 0.5, "regulated": 0.5, "tones": 1.0, "poems": 2} == found["verse"]["五言绝句"]


def test_variety_is_counted_over_all_texts_and_repetition_inside_each():
    found = variety(["春风春风", "春 风"])
    assert found["distinct_1"] == 2 / 6
    assert found["distinct_2"] == 2 / 4  # 春风 风春 春风, 春风
    assert found["repeated_2"] == pytest.approx((1 / 3 + 0) / 2)
    assert found["repeated_4"] == 0
    assert variety(["春"])["distinct_2"] is None
