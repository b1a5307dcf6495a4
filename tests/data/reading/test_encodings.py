"""The encoding of a text is found, or the text is refused."""

import random

import pytest

from data.reading.compression import ESCAPE
from data.reading.encodings import WHOLE_FILE_BYTES, UnreadableError, detect, detect_bytes

SIMPLIFIED = (
    "列位看官：你道此书从何而来？说起根由，虽近荒唐，细按则深有趣味。待在下将此来历注明，方使阅者了然不惑。\n"
    "原来女娲氏炼石补天之时，于大荒山无稽崖炼成高经十二丈、方经二十四丈顽石三万六千五百零一块。\n"
)
TRADITIONAL = (
    "列位看官：你道此書從何而來？說起根由，雖近荒唐，細按則深有趣味。待在下將此來歷注明，方使閱者了然不惑。\n"
    "原來女媧氏煉石補天之時，於大荒山無稽崖煉成高經十二丈、方經二十四丈頑石三萬六千五百零一塊。裏面一段話。\n"
)
CASES = [
    (SIMPLIFIED, "utf-8"),
    (SIMPLIFIED, "utf-8-sig"),
    (SIMPLIFIED, "utf-16"),
    (SIMPLIFIED, "utf-16-le"),
    (SIMPLIFIED, "utf-16-be"),
    (SIMPLIFIED, "gb18030"),
    (SIMPLIFIED, "gb2312"),
    (TRADITIONAL, "gb18030"),
    (TRADITIONAL, "big5hkscs"),
    (TRADITIONAL + "Ê̄", "big5hkscs"),  # One code, two characters, of which the second has none.
    (TRADITIONAL, "cp950"),
    (TRADITIONAL, "utf-8"),
    ("def main() -> None:\n    print(1)\n", "utf-16-le"),
]


@pytest.mark.parametrize(("text", "encoding"), CASES)
def test_the_detected_codec_gives_back_the_text(text, encoding, tmp_path):
    path = tmp_path / "红 楼 梦.txt"
    path.write_bytes(text.encode(encoding))

    name = detect(path)

    assert path.read_bytes().decode(name) == text
    assert detect_bytes(path.read_bytes(), whole=True) == name


@pytest.mark.parametrize(("text", "encoding"), [(SIMPLIFIED, "gb18030"), (TRADITIONAL, "big5hkscs"), (SIMPLIFIED, "utf-16-be")])
def test_every_passage_of_a_dozen_characters_is_enough(text, encoding):
    for start in range(len(text) - 12):
        data = text[start : start + 12].encode(encoding)

        assert data.decode(detect_bytes(data, whole=True)) == text[start : start + 12]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_a_file_too_large_to_read_whole_is_judged_by_windows_that_cut_characters(encoding, tmp_path):
    path = tmp_path / "large.txt"
    data = SIMPLIFIED.encode(encoding)
    more = SIMPLIFIED.encode({"utf-8-sig": "utf-8", "utf-16": "utf-16-le"}.get(encoding, encoding))
    path.write_bytes(data + more * (WHOLE_FILE_BYTES // len(more) + 5))

    assert detect(path) == encoding


def test_a_large_file_that_turns_chinese_in_its_middle_is_not_taken_for_ascii(tmp_path):
    path = tmp_path / "late.txt"
    path.write_bytes(b"plain ascii line\n" * (WHOLE_FILE_BYTES // 17) + SIMPLIFIED.encode("gb18030") * 20_000)

    assert detect(path) == "gb18030"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_the_head_of_a_stream_may_end_inside_a_character(encoding):
    data = SIMPLIFIED.encode(encoding)

    assert {detect_bytes(data[:length], whole=False) for length in range(30, 60)} == {encoding}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x1f\x8b\x08\x00" + b"x" * 50, "gzip"),
        (b"PAR1" + bytes(50), "Parquet"),
        (bytes(range(256)) * 40, "zero bytes"),
        (random.Random(0).randbytes(4000).replace(b"\x00", b"\x01"), r"not UTF-8 \(.* at byte \d+\)"),
        (b"\x01\x02\x03\x04" * 100, "control characters"),
        (b"\x01\x02\x03\x04abc def\n" * 300 + bytes(3), "control characters"),
        ("L’été est déjà passé, où êtes-vous allés ? ".encode("cp1252") * 30, "not UTF-8"),
        ("吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。".encode("shift_jis") * 20, "not UTF-8"),
    ],
)
def test_what_is_no_known_text_is_refused_with_the_reason(data, reason, tmp_path):
    path = tmp_path / "什么.txt"
    path.write_bytes(data)

    with pytest.raises(UnreadableError, match=reason):
        detect(path)


@pytest.mark.parametrize(("text", "encoding"), [(SIMPLIFIED, "utf-8"), (SIMPLIFIED, "gb18030"), (TRADITIONAL, "big5hkscs")])
def test_a_broken_byte_in_a_long_text_costs_one_place_and_not_the_encoding(text, encoding):
    data = bytearray((text * 100).encode(encoding))
    data[2 * (len(data) // 4) + 7] = 0xFF

    name = detect_bytes(bytes(data), whole=True)
    read = data.decode(name, ESCAPE)

    broken = [index for index, character in enumerate(read) if not character.isprintable() and character != "\n"]
    assert name == detect_bytes((text * 100).encode(encoding), whole=True)
    assert 1 <= len(broken) <= 3
    assert abs(len(read) - len(text) * 100) <= 3


def test_damage_does_not_make_a_text_one_of_a_smaller_table():
    text = ("此處碁盤。" + TRADITIONAL.replace("裏", "裡")) * 30  # 碁 is in cp950 and not in Big5.
    data = bytearray(text.encode("cp950"))
    data[2 * (len(data) // 4) + 7] = 0xFF

    assert bytes(data).decode(detect_bytes(bytes(data), whole=True), ESCAPE).count("碁") == 30


@pytest.mark.parametrize("encoding", ["gb18030", "big5hkscs"])
def test_a_file_that_is_joined_of_several_encodings_is_refused(encoding):
    lines = [line.encode(encoding) for line in (TRADITIONAL * 20).splitlines(keepends=True)]

    assert detect_bytes(b"".join(lines), whole=True)
    with pytest.raises(UnreadableError, match=r"several encodings, most of it in (gb18030|big5\w*), this line in UTF-8: 石頭記的緣起"):
        detect_bytes(b"".join([*lines, "石頭記的緣起\n".encode()]), whole=True)


def test_a_line_in_big5_in_a_file_in_gb18030_is_refused_and_private_characters_of_gb18030_are_not():
    lines = [line.encode("gb18030") for line in (SIMPLIFIED * 20 + "造字：\ue000\ue001\ue002。\n").splitlines(keepends=True)]

    assert detect_bytes(b"".join(lines), whole=True) == "gb18030"
    with pytest.raises(UnreadableError, match=r"several encodings, most of it in gb18030, this line in Big5: 列位看官：你道此書從何而來"):
        detect_bytes(b"".join([*lines, TRADITIONAL.splitlines(keepends=True)[0].encode("big5"), *lines]), whole=True)


def test_an_empty_file_is_utf8():
    assert detect_bytes(b"", whole=True) == "utf-8"
