"""One run at a time in a run's folder: two would delete each other's checkpoints.

Rank 0 holds an flock on `lock` in the folder for as long as it lives. The kernel gives it back when its holder ends, however it
ends, so there are no stale locks to judge. What the file says is for people only.
"""

import json
import os
import socket
import time
from pathlib import Path

from ds_configs import ConfigError
from ds_configs.atomic_files import try_lock

NAME = "lock"
# Ranks of a start that was killed a moment ago may still be on their way out.
WAIT_SECONDS = 5.0


def hold(folder: Path) -> int | None:
    """Lock the folder, made if need be, until this process ends or the returned descriptor is closed; None if the file system has no locks.

    Raises:
        ConfigError: If another process holds it: which, where, since when; or if the file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: {error.strerror}. The run's folder must be writable; run.directory names another place."
        ) from error
    deadline = time.monotonic() + WAIT_SECONDS
    while (locked := try_lock(descriptor, folder)) is False and time.monotonic() < deadline:
        time.sleep(0.1)
    if locked is None:
        os.close(descriptor)
        return None
    if not locked:
        holder = _describe(descriptor)
        os.close(descriptor)
        raise ConfigError(
            f"{folder}: another start of this run is going on: {holder}. Wait for its end or stop it; "
            "two runs in one folder need two names (run.name=NAME)."
        )
    record = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(record) + "\n").encode(), 0)
    return descriptor


def check_free(folder: Path) -> None:
    """Say early, before anything is prepared or launched, what `hold` would say in rank 0.

    Raises:
        ConfigError: As `hold`.
    """
    if (folder / NAME).exists() and (descriptor := hold(folder)) is not None:
        os.close(descriptor)


def _describe(descriptor: int) -> str:
    try:
        record = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {record['pid']} on host {record['host']}, since {record['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has not said yet where"
