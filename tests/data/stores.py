"""What the tests of a preparation share; `flip_bit` serves those of checkpoints too."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from data.cleaning_config import DeduplicateConfig
from data.config import DataConfig, TokenizerConfig, ValidationConfig
from data.store import token_store
from data.tokenizers import tokenizer_folder, trainers

CHARACTERS = TokenizerConfig(kind="characters")


def write_documents(folder: Path, count: int, seed: int = 0) -> str:
    """A folder of `count` short text files, all different."""
    folder.mkdir()
    draw = np.random.default_rng(seed)
    for number in range(count):
        characters = "".join(chr(code) for code in draw.integers(0x4E00, 0x4F00, 60))
        (folder / f"{number:04d}.txt").write_text(characters, encoding="utf-8")
    return str(folder)


def texts_of(folder: Path, split: str = "train") -> list[str]:
    """The documents of a split, decoded from a store's shards."""
    manifest = token_store.read_manifest(folder)
    ours = tokenizer_folder.load(folder / "tokenizer")
    texts: list[str] = []
    for stream in manifest["splits"][split]["streams"]:
        for name in stream["shards"]:
            shard = token_store.Shard(folder / name)
            ids = shard.read(0, shard.num_tokens)
            texts += [ours.decode(part.tolist()) for part in np.split(ids, np.cumsum(shard.document_sizes)[:-1])]
    return texts


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def flip_bit(path: Path, byte: int) -> None:
    """As a disk does it: no size changes."""
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


def big_lines(path: Path, count: int, seed: int = 0) -> str:
    """A JSONL file of documents, long enough for several shards of 1 MiB."""
    draw = np.random.default_rng(seed)
    codes = draw.integers(0x4E00, 0x4E80, (count, 1000))
    path.write_text("".join(json.dumps({"content": "".join(map(chr, row))}, ensure_ascii=False) + "\n" for row in codes), encoding="utf-8")
    return str(path)


def large_config(large: str, directory: Path, **changes: Any) -> DataConfig:
    """A preparation with every step, in several shards."""
    values: dict[str, Any] = {
        "seq_length": 64,
        "tokenizer": CHARACTERS,
        "path": large,
        "shuffle": True,
        "shard_mib": 1,
        "deduplicate": DeduplicateConfig(),
        "validation": ValidationConfig(last_shards=1),
        "clean": (),
        "directory": str(directory),
    }
    return DataConfig(**{**values, **changes})


def write_config(config: DataConfig, path: Path) -> str:
    """A configuration's file with this `data` section."""
    section = {key: value for key, value in json.loads(json.dumps(dataclasses.asdict(config))).items() if value is not None}
    path.write_text(json.dumps({"data": section}), encoding="utf-8")
    return str(path)


def character_tokenizer(folder: Path, extra: str = "") -> dict[str, str]:
    """A section for the tokenizer that this trains."""
    trainers.train(["床前明月光" + extra], TokenizerConfig(kind="characters"), folder)
    return {"kind": "existing", "path": str(folder)}
