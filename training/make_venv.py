"""Make `.venv`: once, under a lock, for exactly the requirements asked for. Runs on the system's Python; standard library only.

python3 training/make_venv.py requirements.txt [more.txt ...] [--then COMMAND ...]

pip installs with the settings of whoever starts this: PIP_INDEX_URL and its other variables, and pip's configuration files. None is
overridden here, because many machines reach packages only through a mirror.

A stamp of the files' content skips everything on the next start. A torch that is in the environment already and satisfies the pin
stays, so a build for XPU or CPU that was put there first is kept.
"""

import fcntl
import hashlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
OLDEST, NEWEST = (3, 11), (3, 12)
SHADOWED = ("deepspeed", "numpy", "tokenizers", "torch", "transformers")


def main(names: list[str]) -> int:
    """Returns 0 when `.venv` holds what the files ask for, 2 with one line when it cannot be had."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        return fail(f"Python {sys.version.split()[0]} is too {'old' if sys.version_info[:2] < OLDEST else 'new'}; 3.11 or 3.12 is needed.")
    for name in names or [""]:
        if not (ROOT / name).is_file():
            return fail(f'"{name}" is not a file in {ROOT}. Name files of requirements there, such as requirements.txt.')
    wanted = stamp_of(names)
    if is_current(wanted):
        return 0
    if missing := [module for module in ("venv", "ensurepip") if importlib.util.find_spec(module) is None]:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        return fail(f"this Python has no {' and no '.join(missing)} module. On Debian or Ubuntu: apt-get install python{version}-venv")
    with (ROOT / ".venv.lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("environment: another start is making .venv; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:  # A file system without locks.
            print(
                f"environment: no lock ({error.strerror}): nothing keeps another start from making .venv now", file=sys.stderr, flush=True
            )
        return 0 if is_current(wanted) else make(names, wanted)


def make(names: list[str], wanted: str) -> int:
    """Create and fill the environment; the stamp is written last, so an interrupted one is completed by the next start."""
    python = VENV / "bin" / "python"
    if not has_pip():
        print(f"environment: making .venv with Python {sys.version.split()[0]}", file=sys.stderr, flush=True)
        if run([sys.executable, "-m", "venv", "--clear", str(VENV)]):
            return fail("python -m venv failed; the lines above say why. Often: no space on the disk, or no permission to write here.")
    print(
        f"environment: installing {', '.join(names)} with pip and its settings (the first time minutes, and 0.3 to 3 GB to download; "
        "skipped afterwards)",
        file=sys.stderr,
        flush=True,
    )
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for name in names:
        command += ["-r", str(ROOT / name)]
    if run(command):
        return fail(
            "pip could not install the packages; its lines above say why. Behind a mirror: set PIP_INDEX_URL or pip.conf, both are used. "
            "Without a network: set PIP_NO_INDEX=1 and PIP_FIND_LINKS to a folder of wheels."
        )
    (VENV / "stamp").write_text(wanted + "\n", encoding="utf-8")
    return 0


def run(command: list[str]) -> int:
    """Wait for a command that ends with this process, and so do the processes it starts. Returns its exit code."""
    bound = [sys.executable, str(ROOT / "training" / "launch" / "process_tree.py"), str(os.getpid()), *command]
    process = subprocess.Popen(bound, cwd=ROOT, start_new_session=True)
    try:
        return process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def leave(number: int, frame: FrameType | None) -> None:
    """On a signal. The stamp is written last, so the next start completes what this one has begun."""
    print(f"environment: {signal.Signals(number).name}: stopped; start again to go on.", file=sys.stderr, flush=True)
    sys.exit(128 + number)


def is_current(wanted: str) -> bool:
    """True if the last complete installation was of these files, or of more, and its Python is still there."""
    stamp = VENV / "stamp"
    return stamp.is_file() and set(wanted.split()) <= set(stamp.read_text(encoding="utf-8").split()) and has_pip()


def has_pip() -> bool:
    """False if `.venv` was not made to its end, or the system's Python that it leads to is gone, or is another version now."""
    find = "import importlib.util, sys; sys.exit(importlib.util.find_spec('pip') is None)"
    try:
        return not subprocess.run([VENV / "bin" / "python", "-c", find], capture_output=True, check=False).returncode
    except OSError:
        return False


def stamp_of(names: list[str]) -> str:
    """One hash per file, those they include (`-r other.txt`) too."""
    files = list(dict.fromkeys(names))
    for name in files:
        files += [found for found in re.findall(r"^-r\s+(\S+)", (ROOT / name).read_text(encoding="utf-8"), re.M) if found not in files]
    return " ".join(sorted(hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in files))


def fail(message: str) -> int:
    """One line and the exit code of a mistake that is the user's to mend."""
    print(f"environment: {message}", file=sys.stderr)
    return 2


def shadows() -> list[str]:
    """Where PYTHONPATH has packages that Python finds before those of `.venv`, as modules of clusters set it."""
    folders = [Path(folder) for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    return [str(folder / name) for folder in folders for name in SHADOWED if (folder / name).is_dir()]


def start(arguments: list[str]) -> int:
    """Make the environment, then become the command behind `--then`, if there is one."""
    split = arguments.index("--then") if "--then" in arguments else len(arguments)
    names, command = arguments[:split], arguments[split + 1 :]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    try:
        code = main(names)
    except OSError as error:
        where = error.filename or VENV
        code = fail(
            f"{where}: {error.strerror}. .venv is missing or incomplete; who may write in {ROOT} makes it, for all, with make setup."
        )
    for path in shadows():
        print(f"environment: PYTHONPATH puts {path} before what .venv has. Unset it, unless that is meant.", file=sys.stderr, flush=True)
    if command and not code:
        os.execvp(command[0], command)
    return code


if __name__ == "__main__":
    sys.exit(start(sys.argv[1:]))
