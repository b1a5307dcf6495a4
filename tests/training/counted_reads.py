"""Write down which shared files a rank opens for reading before it trains: hundreds of ranks do so at once.

READS names a folder: each rank leaves `rank<N>` there, one line for each open, `<size in bytes> <path>`. SHARED names the folders that
count, with ":" between them. Seen by Python's audit hook: the files of a run are opened by Python, also those that torch and numpy read.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def count() -> None:
    """From now on until training begins."""
    shared = tuple(os.environ["SHARED"].split(":"))
    report = os.open(Path(os.environ["READS"], f"rank{os.environ['RANK']}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    trains = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or trains or int(arguments[2]) & WRITES or not isinstance(arguments[0], (str, os.PathLike)):
            return
        path = Path(arguments[0]).resolve()
        if str(path).startswith(shared):
            os.write(report, f"{path.stat().st_size if path.exists() else 0} {path}\n".encode())

    from training.run import loop

    train = loop.train

    def uncounted(*arguments: Any) -> None:
        nonlocal trains
        trains = True
        train(*arguments)

    loop.train = uncounted  # type: ignore[assignment]
    sys.addaudithook(hook)
