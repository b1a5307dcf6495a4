"""Start a run over and over in this process's children and kill each at another write of its first save.

Usage: kill_in_saves.py CONFIG

Prints a JSON list: the operation that each kill came before, in the order of a save. Of operations in a row that differ in a number
only (layer files, their sync, their removal) the first and the last are taken. The children are forked with torch and DeepSpeed
imported, so that a start costs a second. Operations are seen by Python's audit hook, and fsync, which has none, by a wrapper:
nothing in the product knows of this.
"""

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from training.launch.local import free_port

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def start(config: str, kill_before: str, *overrides: str) -> list[str]:
    """One start, killed before the operation of that name, or, without one, until it ends. Returns the operations of its saves."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.environ["MASTER_PORT"] = str(free_port())
        watch(writer, kill_before)
        from training.pretrain import main

        os._exit(main([config, *overrides]))
    os.close(writer)
    with os.fdopen(reader) as lines:
        operations = lines.read().splitlines()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != (-signal.SIGKILL if kill_before else 0):
        raise SystemExit(f"the start to be killed before {kill_before!r} ended with {code}")
    return operations


def watch(report: int, kill_before: str) -> None:
    """Write every operation of saves, what they prune included, to `report`, and kill this process before one of them."""
    from training.run import loop

    seen: dict[str, int] = {}
    save = loop.save
    saving = False

    def note(operation: str) -> None:
        if not saving and threading.current_thread().name != "save":
            return
        # A temporary file's name holds host and process, and the latter differs from start to start.
        operation = re.sub(r"step\d+", "STEP", operation).replace(f".{socket.gethostname()}.{os.getpid()}.tmp", ".tmp")
        seen[operation] = seen.get(operation, 0) + 1
        name = f"{operation} #{seen[operation]}"
        os.write(report, f"{name}\n".encode())
        if name == kill_before:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and not int(str(arguments[2])) & WRITES:
            return
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            # Python's rmtree names what it removes relative to an open folder.
            note(f"{event} {str(arguments[0]).rpartition('/')[2]}")

    def noted(*arguments: Any, wait: bool) -> None:
        nonlocal saving
        saving = True
        try:
            save(*arguments, wait=wait)
        finally:
            saving = False  # What follows, the results of a finished run, is no part of it.

    loop.save = noted  # type: ignore[assignment]
    sys.addaudithook(hook)
    os.fsync = counted(os.fsync, lambda: note("fsync"))  # type: ignore[assignment]


def counted(call: Callable[[int], None], before: Callable[[], None]) -> Callable[[int], None]:
    """`call`, and `before` in front of it."""

    def both(file: int) -> None:
        before()
        call(file)

    return both


def first_and_last_of_alike(operations: list[str]) -> list[str]:
    """Leave out what stands between two of its kind."""
    kinds = [re.sub(r"\d+", "N", operation) for operation in operations]
    rows = zip(operations, [None, *kinds], kinds, [*kinds[1:], None], strict=False)
    return [operation for operation, before, kind, after in rows if not before == kind == after]


def main(config: str) -> None:
    """Kill at every kind of operation of a save that also prunes."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    import deepspeed  # noqa: F401  (for the children)

    start(config, "", "training.steps=2")
    operations = first_and_last_of_alike(start(config, "", "training.steps=4"))
    print(json.dumps([start(config, operation)[-1] for operation in operations]))


if __name__ == "__main__":
    main(sys.argv[1])
