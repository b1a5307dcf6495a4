"""Each cleaning rule: what it removes, and what it must leave alone."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import pytest

from data.cleaning.cleaner import Cleaner, build_rules
from data.cleaning_config import DEFAULT_RULES, RULES
from data.corpora.chapters import split_chapters
from data.documents import Document
from ds_configs import ConfigError
from tests.data.extra_corpora import EXTRA, needs_extra

PROSE = (
    "列位看官：你道此书从何而来？说起根由，虽近荒唐，细按则深有趣味。待在下将此来历注明，方使阅者了然不惑。\n"
    "原来女娲氏炼石补天之时，于大荒山无稽崖炼成高经十二丈、方经二十四丈顽石三万六千五百零一块。"
)
VERSE = "空山不见人，但闻人语响。\n返景入深林，复照青苔上。"
ENGLISH = "The quick brown fox jumps over the lazy dog, and nobody in the village was surprised to hear about it."
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所で泣いていた事だけは記憶している。"


def rule(name):
    """Makes the rule of this name, of its parameters."""
    return lambda **parameters: build_rules([{"rule": name, **parameters}])[name]


Unicode, Control, Boilerplate = rule("unicode"), rule("control"), rule("boilerplate")
MinLength, LineRepetition, NgramRepetition = rule("min_length"), rule("line_repetition"), rule("ngram_repetition")
HanRatio, Language, Convert = rule("han_ratio"), rule("language"), rule("convert")


def default_cleaner():
    return Cleaner(build_rules(None))


@pytest.mark.parametrize("text", [PROSE, VERSE, VERSE.replace("，", ",").replace("。", ".")])
def test_the_default_rules_return_good_prose_and_verse_unchanged(text):
    assert default_cleaner().clean(Document(text, "x")) == Document(text, "x")


def test_a_text_of_which_a_rule_leaves_nothing_is_dropped_by_it():
    cleaner = Cleaner(build_rules([{"rule": "unicode"}, {"rule": "control"}]))

    assert cleaner.clean(Document("\u200b \u200b", "x")) is None
    assert [count.documents_dropped for count in cleaner.counts.values()] == [0, 1]


def test_full_width_letters_and_digits_become_narrow_and_chinese_punctuation_stays():
    text = "Ａ１ｚ，。！？：；（）～“”《》——……　缩进"

    assert Unicode()(text) == "A1z，。！？：；（）～“”《》——……　缩进"
    assert Unicode(form="NFKC")("①㎏ﬁ" + text) == "1kgfi" + "A1z，。！？：；（）～“”《》——……　缩进"
    assert Unicode(narrow_letters=False)("Ａ") == "Ａ"
    assert Unicode()("e\u0301") == "é"


def test_control_characters_go_and_every_line_break_is_a_line_feed():
    assert Control()("\ufeff红\u200b楼\x00梦\r\n一\r二\u2028三\xa0四\t五\n\n\n\n\n六") == "红楼梦\n一\n二\n三 四\t五\n\n\n六"
    assert Control()("好" * 50 + "\ufffd" * 2) is None
    assert Control()("好" * 500 + "\ufffd") is not None


@pytest.mark.parametrize(
    "line",
    [
        "上一章 | 目录 | 下一章",
        "责任编辑：王小明",
        "版权所有 © 2020 某某网 京ICP备12345678号",
        "扫描下方二维码关注我们",
        "（本章未完，请点击下一页继续阅读）",
        "https://example.com/a?b=c",
        "相关阅读：十大名著排行",
        "　　【广告】",
    ],
)
def test_boilerplate_lines_go_and_the_text_around_them_stays(line):
    assert Boilerplate()(f"第一行。\n{line}\n第二行。") == "第一行。\n第二行。"
    assert Boilerplate()(f"第一行。\n第二行。\n{line}") == "第一行。\n第二行。\n"
    assert Boilerplate()(line) is None


@pytest.mark.parametrize(
    "line", ["上一篇文章里我们说到了这件事", "他点击率受到关注", "他说广告太多了", "版权所有的问题，终于说清楚了。", "目录学是一门学问"]
)
def test_sentences_that_only_mention_such_words_stay(line):
    assert Boilerplate()(line) == line


def test_lines_of_ones_own_can_be_boilerplate():
    assert Boilerplate(patterns=("☆+",), built_in=False)("一\n ☆☆☆ \n广告\n二") == "一\n广告\n二"
    # Each pattern counts its groups by itself, and may name them as another does.
    assert Boilerplate(patterns=(r"(☆)\1", r"(★)\1", "(?P<mark>※)(?P=mark)", "(?P<mark>〓)(?P=mark)"))("一\n★★\n〓〓\n二") == "一\n二"


def test_length_counts_characters_without_white_space():
    assert MinLength(chars=3)("一 \n 二") is None
    assert MinLength(chars=3)("一 \n 二三") == "一 \n 二三"


def test_texts_of_repeated_lines_are_dropped_and_a_refrain_is_not():
    assert LineRepetition()("\n".join(["买它买它买它"] * 5 + ["别的一行"])) is None
    assert LineRepetition()(f"{PROSE}\n返景入深林\n{PROSE[::-1]}\n返景入深林") is not None


@pytest.mark.parametrize("length", [4, 60])
def test_repetition_within_a_line_is_found_in_short_and_in_long_texts(length):
    assert NgramRepetition()("点击这里领取红包，马上就能提现！" * length) is None
    assert NgramRepetition()(PROSE) == PROSE


def test_english_and_code_are_compared_by_words_not_by_letters():
    names = [first + last for first in ("load", "save", "open", "close") for last in ("Text", "Page", "Word", "Line", "Book")]
    code = "\n".join(
        f"def {name}(self, path):\n    return self.{name}At(path, self.{other})" for name, other in zip(names, names[::-1], strict=True)
    )

    assert NgramRepetition()(code) == code
    assert NgramRepetition()("click here to get the very best offer of the whole year, " * 30) is None


def test_the_script_rule_keeps_verse_and_drops_other_scripts():
    for text in (VERSE, PROSE, "〇"):
        assert HanRatio()(text) == text
    for text in (ENGLISH, JAPANESE, "", "123", "Привет мир", "안녕하세요 반갑습니다"):
        assert HanRatio()(text) is None


def test_the_language_rule_knows_prose_verse_and_english_without_a_download():
    for text in (PROSE, VERSE):
        assert Language()(text) == text
    for text in (ENGLISH, JAPANESE):
        assert Language()(text) is None
    assert Language(keep=("en",))(ENGLISH) == ENGLISH
    assert Language(keep=("zh", "en"))(f"{PROSE}\n{ENGLISH}") is not None
    assert Language()("今天我们来学习 Python 的 pandas library，用 read_csv function 读取 data frame。") is not None
    assert Language(keep=("en",))(PROSE) is None


def test_traditional_and_simplified_are_converted_only_when_asked_for():
    assert Convert(config="t2s")("說書人歸來") == "说书人归来"
    assert Convert(config="s2t")("说书人归来") == "說書人歸來"
    assert default_cleaner().clean(Document("說書人歸來", "x")) == Document("說書人歸來", "x")


def test_every_problem_of_a_list_of_rules_is_reported_at_once():
    section: list[dict[str, object]] = [
        {"rule": "min_lenght"},
        {"rule": "han_ratio", "min_ratio": 3},
        {"rule": "ngram_repetition", "size": 4},
        {"chars": 3},
        {"rule": "convert"},
    ]

    with pytest.raises(ConfigError) as caught:
        build_rules(section)

    problems = caught.value.problems
    assert len(problems) == 5
    assert 'Did you mean "min_length"?' in problems[0]
    assert "data.clean[1]" in problems[1]
    assert "a number from 0 to 1" in problems[1]
    assert "size" in problems[2]
    assert "name of a rule" in problems[3]
    assert "config" in problems[4]


@pytest.mark.parametrize(
    "entry",
    [
        {"rule": "min_length", "chars": 0},
        {"rule": "boilerplate", "patterns": ["("]},
        {"rule": "boilerplate", "patterns": ["(?s)x"]},
        {"rule": "boilerplate", "patterns": ["a)(b"]},
        {"rule": "language", "keep": []},
    ],
)
def test_a_value_that_makes_no_sense_is_refused_before_any_text_is_read(entry):
    with pytest.raises(ConfigError):
        build_rules([entry])


def test_the_accounts_of_two_pieces_add_up_to_those_of_the_whole():
    documents = [
        Document(text, f"文 {index}") for index, text in enumerate([PROSE, "短", VERSE + "\r\n", "买" * 400, "少", "小", "微", "点", "末"])
    ]
    rules = build_rules(None)
    whole, first, second = Cleaner(rules), Cleaner(rules), Cleaner(rules)
    kept = [whole.clean(document) for document in documents]
    assert [first.clean(document) for document in documents[:4]] + [second.clean(document) for document in documents[4:]] == kept
    for name, count in first.counts.items():
        count.add(second.counts[name])

    assert first.counts == whole.counts
    assert [document.text for document in kept if document] == [PROSE, VERSE + "\n"]
    assert whole.counts["control"].documents_changed == 1
    assert whole.counts["min_length"].documents_dropped == 6
    assert [sample["source"] for sample in whole.counts["min_length"].samples] == ["文 1", "文 4", "文 5", "文 6", "文 7"]
    assert whole.counts["ngram_repetition"].documents_dropped == 1
    for count in whole.counts.values():
        assert count.chars_out <= count.chars_in


def test_a_rule_can_be_listed_twice():
    rules = build_rules([{"rule": "min_length", "chars": 2}, {"rule": "control"}, {"rule": "min_length", "chars": 9}])

    assert list(rules) == ["min_length", "control", "min_length 2"]


def test_an_empty_list_means_no_cleaning():
    document = Document("\x00", "x")

    assert Cleaner(build_rules([])).clean(document) is document


def test_the_documentation_names_every_rule_and_parameter_with_its_default():
    text = Path("docs/cleaning.md").read_text(encoding="utf-8")
    for name, rule_class in RULES.items():
        section = re.search(rf"^### `{name}`$(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
        assert section, name
        for parameter in dataclasses.fields(rule_class):
            default = parameter.default
            shown = "none" if default is dataclasses.MISSING else _as_json(default)
            assert f"| `{parameter.name}` | {shown} |" in section[1], (name, parameter.name, shown)
    assert [rule["rule"] for rule in DEFAULT_RULES] == re.findall(r"^1\. `(\w+)`", text, re.MULTILINE)


def _as_json(value):
    return f"`{json.dumps(value)}`"


@needs_extra
def test_the_default_rules_keep_the_poems():
    texts = []
    for path in sorted(EXTRA.glob("poems_*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            texts += [row["内容"] for row in csv.DictReader(file)]
    for section in (None, [{"rule": "han_ratio"}], [{"rule": "language"}]):
        cleaner = Cleaner(build_rules(section))

        kept = sum(cleaner.clean(Document(text, "")) is not None for text in texts)

        assert kept >= 0.995 * len(texts) > 0


@needs_extra
def test_the_default_rules_keep_all_chapters_of_the_novel():
    text = next(EXTRA.glob("*120_chapters*.txt")).read_text(encoding="utf-8")
    chapters = [chapter.text for chapter in split_chapters(text).all]
    cleaner = default_cleaner()

    kept = [cleaner.clean(Document(chapter, "")) for chapter in chapters]

    assert len(kept) == 120
    assert all(kept)
    assert cleaner.counts["boilerplate"].documents_changed == 0
