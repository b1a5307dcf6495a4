"""Which folders of a run are its checkpoints. Here, because training, inference and data all ask.

A checkpoint is a folder `runs/<name>/checkpoints/step00000100/` with a `manifest.json`, which is written last.
"""

import re
from pathlib import Path

MANIFEST = "manifest.json"


def tag_of(step: int) -> str:
    """The folder's name of the checkpoint of a step."""
    return f"step{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint's folder; None for a name that is not one of ours, such as a copy "step00000100_best"."""
    found = re.fullmatch(r"step(\d{8,})", name)
    return int(found.group(1)) if found else None


def complete_tags(checkpoints: Path) -> list[str]:
    """Names of the checkpoints that were published, newest first. Files are not verified."""
    steps = (step_of(path.parent.name) for path in checkpoints.glob(f"step*/{MANIFEST}"))
    return [tag_of(step) for step in sorted((step for step in steps if step is not None), reverse=True)]
