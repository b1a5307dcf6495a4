"""What all tests share: where the project is, and a small real text."""

import random
from pathlib import Path

import pytest

from tests import ROOT

pytest_plugins = ["tests.processes", "tests.system_packages", "tests.quickstart"]

# Lines of Tang poems; recombined, they make a text of any length with the letter statistics of verse.
LINES = [
    "床前明月光",
    "疑是地上霜",
    "举头望明月",
    "低头思故乡",
    "白日依山尽",
    "黄河入海流",
    "欲穷千里目",
    "更上一层楼",
    "春眠不觉晓",
    "处处闻啼鸟",
    "夜来风雨声",
    "花落知多少",
    "红豆生南国",
    "春来发几枝",
    "愿君多采撷",
    "此物最相思",
    "千山鸟飞绝",
    "万径人踪灭",
    "孤舟蓑笠翁",
    "独钓寒江雪",
    "空山不见人",
    "但闻人语响",
    "返景入深林",
    "复照青苔上",
    "国破山河在",
    "城春草木深",
    "感时花溅泪",
    "恨别鸟惊心",
    "烽火连三月",
    "家书抵万金",
    "白头搔更短",
    "浑欲不胜簪",
]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def verse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A UTF-8 text file of some 27,000 characters in 20 chapters, the same every time."""
    draw = random.Random(0)
    paragraphs = [f"第{number}回\n" + "，".join(draw.choice(LINES) for _ in range(224)) + "。" for number in range(1, 21)]
    path = tmp_path_factory.mktemp("verse") / "verse.txt"
    path.write_text("\n".join(paragraphs) + "\n", encoding="utf-8")
    return path
