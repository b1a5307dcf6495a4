"""Make a corpus of web documents in WuDao's shape out of the paragraphs of real texts.

    python benchmarks/make_web_documents.py OUTPUT_FOLDER TEXT... [--megabytes 2000] [--files 8] [--seed 0]

A document is a JSON object with uniqueKey, titleUkey, dataType, title and content; a file is an array of them. Contents are
5 to 60 passages of at most some 200 characters drawn at random, with lengths spread as on the web; one document in a hundred
is a near copy of an earlier one, one in two hundred an exact one, and some carry navigation lines, as real crawls do. TEXT is
a text file or a CSV with a column 内容. The same arguments make the same bytes. The passages repeat: measure speed and memory
with it, not what a model learns.
"""

import argparse
import csv
import hashlib
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

KINDS = ("百科", "新闻", "博客", "论坛", "小说", "问答")
NAVIGATION = ("首页 | 上一页 | 下一页", "责任编辑：佚名", "版权所有，未经许可不得转载", "扫描下方二维码关注我们", "相关阅读：名著导读十则")
NEAR_COPIES = 0.01
EXACT_COPIES = 0.005


def main(arguments: Sequence[str]) -> int:
    """Write the files and print what was written."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--megabytes", type=float, default=2000)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    paragraphs = [paragraph for path in options.texts for paragraph in read_paragraphs(path)]
    options.folder.mkdir(parents=True, exist_ok=True)
    file_bytes = int(options.megabytes * 1e6 / options.files)
    total = count = 0
    for index in range(options.files):
        path = options.folder / f"part-2021{index:06d}.json"
        written, documents = write_file(path, documents_of(paragraphs, random.Random(f"{options.seed} {index}")), file_bytes)
        total, count = total + written, count + documents
    print(f"{options.folder}: {count} documents in {options.files} files, {total / 1e6:.0f} MB, from {len(paragraphs)} paragraphs")
    return 0


def read_paragraphs(path: Path) -> list[str]:
    """Return the paragraphs of a text, or the poems of a CSV, that have 20 characters or more.

    Long ones are cut after sentences: two documents that share one long paragraph would be near copies of each other.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        texts = [row["内容"] for row in csv.DictReader(file)] if path.suffix == ".csv" else [line.strip() for line in file]
    passages = [passage for text in texts for passage in re.findall(r"(?s).{1,160}(?:.{0,40}[。！？]|$)[”’」]?", text)]
    return [passage for passage in passages if len(passage) >= 20]


def documents_of(paragraphs: Sequence[str], draw: random.Random) -> Iterator[dict[str, str]]:
    """Yield documents without end."""
    recent: list[str] = []  # What copies are made of: a sample of what was written.
    number = 0
    while True:
        kind = draw.random()
        if recent and kind < EXACT_COPIES:
            content = draw.choice(recent)
        elif recent and kind < EXACT_COPIES + NEAR_COPIES:
            content = change_a_tenth(draw.choice(recent), draw.choice(paragraphs), draw)
        else:
            lines = draw.choices(paragraphs, k=min(60, 5 + int(draw.expovariate(1 / 12))))
            if draw.random() < 0.1:
                lines.append(draw.choice(NAVIGATION))
            content = "\n".join(lines)
        if len(recent) < 1000:
            recent.append(content)
        elif draw.random() < 0.05:
            recent[draw.randrange(1000)] = content
        key = hashlib.md5(f"{number} {content[:50]}".encode()).hexdigest()  # WuDao's keys look like that.
        number += 1
        yield {"uniqueKey": key, "titleUkey": key[::-1], "dataType": draw.choice(KINDS), "title": content[:18], "content": content}


def change_a_tenth(text: str, other: str, draw: random.Random) -> str:
    """Replace a tenth of a text, in one place, by another."""
    size = len(text) // 10
    at = draw.randrange(len(text) - size)
    return text[:at] + (other * (1 + size // len(other)))[:size] + text[at + size :]


def write_file(path: Path, documents: Iterator[dict[str, str]], num_bytes: int) -> tuple[int, int]:
    """Write an array of documents of about `num_bytes`; return its bytes and the number of documents."""
    written = count = 0
    with path.open("wb") as file:
        while written < num_bytes:
            line = json.dumps(next(documents), ensure_ascii=False).encode()
            written += file.write((b",\n" if count else b"[") + line)
            count += 1
        written += file.write(b"]\n")
    return written, count


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
