"""The pages that people read, and what is in them: code blocks, commands, files."""

import re
from pathlib import Path

from tests import ROOT

ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
PAGES = [
    ENGLISH,
    CHINESE,
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "ds_configs/README.md",
    ROOT / "hostfiles/README.md",
    ROOT / "tests/README.md",
]
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^ {4,}\S.*\n)+", re.MULTILINE)


def named(path: Path) -> str:
    """A page's name in a test's id."""
    return str(path.relative_to(ROOT))


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a language; "" is a block that names none."""
    return [body for name, body in _FENCED.findall(text) if name == language]


def commands(text: str) -> list[str]:
    """The command lines of a page in order, comments and continuations taken out."""
    shell = [body for name, body in _FENCED.findall(text) if name in ("", "bash", "sh")]
    shell += _INDENTED.findall(_FENCED.sub("", text))
    lines = "\n".join(shell).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if line]


def sections(text: str) -> list[str]:
    """A page cut at its headings."""
    fenced = _FENCED.sub(lambda block: re.sub(r"^#", "\0", block[0], flags=re.MULTILINE), text)
    return [part.replace("\0", "#") for part in re.split(r"^(?=#{1,6} )", fenced, flags=re.MULTILINE)]
