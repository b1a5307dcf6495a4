"""The random state of one rank in a checkpoint: what makes a resumed run repeat the uninterrupted one, dropout included.

The file holds tensors, numbers and tuples only, so that it is read without unpickling: nothing in it can run.
"""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed.accelerator import get_accelerator

# Version 0.1 saved numpy's keys as an array. These names rebuild one and do nothing else.
ARRAY: list[Any] = [np.ndarray, np.dtype, type(np.dtype(np.uint32)), np.empty(0).__reduce__()[0]]


def capture() -> dict[str, Any]:
    """The state of Python, numpy, torch and the rank's device, now."""
    accelerator = get_accelerator()
    kind, keys, *position = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *position),
        "device": accelerator.get_rng_state() if accelerator.device_name() != "cpu" else None,
    }


def write(folder: Path, rank: int, state: dict[str, Any]) -> None:
    """Write what was captured.

    Raises:
        OSError: If the file cannot be opened.
        RuntimeError: If it cannot be written to its end, which torch may report so.
    """
    with (folder / name(rank)).open("wb") as file:
        torch.save(state, file)


def load(folder: Path, rank: int) -> None:
    """Take up the state again.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it holds anything but such a state.
    """
    try:
        with torch.serialization.safe_globals(ARRAY):
            state = torch.load(folder / name(rank), weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message recommends to load it with weights_only=False, which runs whatever is in it.
        raise ValueError(f"{name(rank)} holds something else than random states; it was not loaded") from error
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    kind, keys, *position = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *position))
    if state["device"] is not None:
        get_accelerator().set_rng_state(state["device"])


def name(rank: int) -> str:
    """The file's name in a checkpoint's folder."""
    return f"random_state_rank{rank:05d}.pt"
