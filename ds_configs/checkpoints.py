"""Which folders of a run are its checkpoints. Here, because training, inference and data all ask.

A checkpoint is a folder `runs/<name>/checkpoints/step00000100/` with a `manifest.json`, which is written last.
"""

import re
from pathlib import Path

MANIFEST = "manifest.json"
UNIVERSAL = "universal_"
"""In front of a tag: what a resume on another topology makes of that checkpoint, beside it, in DeepSpeed's universal form."""
PARTITION_FILE = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
"""The optimizer's share of one replica (first number) of one stage (second)."""

_TAG = re.compile(r"step(\d{8,})")


def tag_of(step: int) -> str:
    """The folder's name of the checkpoint of a step."""
    return f"step{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint's folder; None for a name that is not one of ours, such as a copy "step00000100_best"."""
    found = _TAG.fullmatch(name)
    return int(found[1]) if found else None


def complete_tags(checkpoints: Path) -> list[str]:
    """Names of the checkpoints that were published, newest first. Files are not verified."""
    steps = (step_of(path.parent.name) for path in checkpoints.glob(f"*/{MANIFEST}"))
    return [tag_of(step) for step in sorted((step for step in steps if step is not None), reverse=True)]
