"""Files as every package writes and reads them: atomically, whole or not at all, on the disk before they count, known by their SHA-256.

Here, because this package imports nothing of ours and all others may import it.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import resource
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # What a file system says that has none.
_SPARE_FILES = 256  # For checkpoints, sockets and logs.


def sha256_of(path: Path) -> str:
    """SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def facts_of(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as manifests record them."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def wrong_with(path: Path, facts: Mapping[str, Any], *, hashed: bool = True) -> str | None:
    """What is wrong with a file whose `facts_of` were recorded, if anything is; unless it is `hashed`, its size alone counts.

    Raises:
        OSError: If it cannot be read, which says nothing of what is in it.
    """
    try:
        got = path.stat().st_size if path.is_file() else None
        if got != facts["bytes"]:
            return f"{path} is missing" if got is None else f"{path} has {got} bytes, wanted {facts['bytes']}"
        fits = not hashed or sha256_of(path) == facts["sha256"]
        return None if fits else f"{path} was changed after it was written (its SHA-256 does not fit)"
    except OSError as error:  # That of a read names no file.
        raise OSError(error.errno, error.strerror, str(path)) from error


def digest(value: object) -> str:
    """SHA-256 of a JSON value, the same for equal values."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode("utf-8")).hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it becomes `path`, on the disk and whole."""
    temporary = temporary_name(path)
    try:
        yield temporary
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; when the block ends well it becomes `path`, in the place of what was there.

    A link stays one: the folder that it names is replaced.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", ignore_cleanup_errors=True) as scratch:
        new = Path(scratch) / "new"
        new.mkdir()  # The scratch folder itself is its owner's alone.
        yield new
        if path.exists():
            path.rename(Path(scratch) / "old")
        new.rename(path)


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process uses, on whatever host it runs.

    So a process that is about to die writes nowhere that matters to the next start.
    """
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a finished file, its content being on the disk before its name counts, and its name before this returns."""
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def with_ending(prefix: Path, ending: str) -> Path:
    """The file of this ending among those whose names begin with `prefix`, in which a dot begins no ending."""
    return prefix.with_name(prefix.name + ending)


@contextlib.contextmanager
def lock(path: Path, waiting: str) -> Iterator[None]:
    """Hold `path` alone, or, which is said, go on without where there are no locks; `waiting` is said while another process has it.

    The system gives the lock back when its holder dies, however it dies.
    """
    # Another user's file can be locked, though not written.
    with path.open("r" if path.exists() and not os.access(path, os.W_OK) else "w", encoding="utf-8") as file:
        if try_lock(file.fileno(), path.parent) is False:
            logger.warning(waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def try_lock(descriptor: int, folder: Path) -> bool | None:
    """Lock an open file in a folder; False if another process holds it, None, which is said, where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s: this file system has no locks, so nothing keeps another process out.", folder)
        return None
    return True


def sync(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def allow_open_files(count: int, what: str, advice: str = "") -> None:
    """Let this process open `count` more files: many systems allow 1,024 at first.

    Raises:
        ValueError: If the system's limit is lower: `what` needs them, and `advice` names another way than to raise it.
    """
    needed = len(os.listdir("/dev/fd")) + count + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ValueError(f"{what} needs {needed} open files, the limit is {hard}. Raise it (ulimit -Hn){advice}.")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object, indent: int = 1) -> None:
    """Write a value as `strict_json`, as `write_text` does."""
    write_text(path, strict_json(value, indent=indent) + "\n")


def check_output(path: Path) -> None:
    """A file that a command writes must have a folder to be in.

    Raises:
        ValueError: If it cannot be written there.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{path}: cannot be written. Name a file in a folder that exists.")


def strict_json(value: object, indent: int | None = None) -> str:
    """JSON that every reader takes: a number that is not finite, which JSON does not have, becomes null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_object(path: Path, advice: str = "") -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file.

    Raises:
        ValueError: If the file cannot be read, or holds something else, where its message ends with the advice.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: unreadable ({error}){'.' if isinstance(error, OSError) else advice}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds no JSON object{advice}")
    return values


def object_or_nothing(path: Path) -> dict[str, Any]:
    """As `read_object`, for files that anybody may have written: empty too if the file holds something else."""
    try:
        return read_object(path)
    except ValueError:
        return {}
