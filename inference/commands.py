"""What the commands have in common: the threads they compute with, the files they write. Torch is not needed here."""

from __future__ import annotations

import os
from pathlib import Path

from model.hardware.processors import usable_processors


def set_threads(num_processes: int = 1) -> None:
    """What torch's threads read when torch is imported; nothing that is set already is changed."""
    # Threads that wait for each other spin by default. Where anything else runs, they then mostly wait for a core: on two busy cores a
    # 4.5 M model wrote 4 tokens/s with spinning and 150 without.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Before they sleep they spin for some microseconds (GNU's OpenMP counts rounds): one token of a 124 M model is hundreds of waits that
    # short, and sleeping and waking at each of them took a third of its time on idle cores.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    if num_processes > 1:
        # By itself each process takes all cores.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_processors() // num_processes)))


def check_output(path: Path) -> None:
    """A file that a command writes must have a folder to be in.

    Raises:
        ValueError: If it cannot be written there.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{path}: cannot be written. Name a file in a folder that exists.")
