"""A novel in a file, and preparations of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.config import DataConfig
from ds_configs import build_section


@pytest.fixture
def make_novel(verse: Path, tmp_path: Path) -> Callable[..., DataConfig]:
    """A `data` section for a text of one's own, with changes."""

    def made(**changes: Any) -> DataConfig:
        section: dict[str, Any] = {
            "path": str(tmp_path / "a/novel.txt"),
            "seq_length": 16,
            "clean": [],
            "validation": {"ratio": 0.1},
            "tokenizer": {"kind": "characters"},
            "directory": str(tmp_path / "stores"),
        }
        return build_section(DataConfig, {**section, **changes}, "data", "run.json")

    (tmp_path / "a").mkdir()
    (tmp_path / "a/novel.txt").write_text(verse.read_text(encoding="utf-8"), encoding="utf-8")
    return made
