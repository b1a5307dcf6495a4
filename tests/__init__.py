"""The tests. A package, so that no other package's `tests` that is installed beside takes its place."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
