"""Corpora that are no part of the project: those in the folder that EXTRA_CORPORA names (tests/README.md)."""

import os
from pathlib import Path

import pytest

EXTRA = Path(os.environ.get("EXTRA_CORPORA") or os.devnull)
needs_extra = pytest.mark.skipif(not EXTRA.is_dir(), reason="EXTRA_CORPORA names no folder with more corpora")
