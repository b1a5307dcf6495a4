"""Models to serve (a tiny one, one that knows texts by heart, the trained quickstart), the real server as a process, and a browser."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from tests import ROOT, processes
from tests.inference.server.browser import Browser, find_browser
from tests.inference.server.known_texts import KnownTexts, make_known_texts
from tests.inference.tiny_folder import save_tiny
from tests.quickstart import MARKS

POSITIONS = 256
KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory: pytest.TempPathFactory, verse: Path) -> Callable[[str], Path]:
    """A Hugging Face folder of a family."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny(family, tmp_path_factory.mktemp(family) / f"tiny-{family}", verse, positions=POSITIONS)
        return made[family]

    return make


class Server:
    """A running `inference.serve`, and where to reach it."""

    def __init__(self, model: Path, log: Path, *options: str, checkout: Path = ROOT, **environment: str) -> None:
        self._log, self.model = log, model
        command = [sys.executable, "-m", "inference.serve", str(model), "--port", "0", "--dtype", "fp32", *options]
        environment = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT), **environment}
        with log.open("w", encoding="utf-8") as file:
            self.process = processes.start(command, stderr=file, stdout=subprocess.DEVNULL, env={**os.environ, **environment}, cwd=checkout)
        processes.wait_until(lambda: "at http://" in self.log or self.process.poll() is not None, "the server's first line")
        match = re.search(r"(\S+) at http://\S+:(\d+)", self.log)
        assert match, self.log
        self.name, self.port = match[1], int(match[2])

    @property
    def folder(self) -> Path:
        """The Hugging Face folder: of a run, its export."""
        return export if (export := self.model / "export").is_dir() else self.model

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text(encoding="utf-8")

    def ask(self, body: Any = None, path: str = "/v1/completions", **headers: str) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Status, answer and headers."""
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json", **headers})
        try:
            answer = urllib.request.urlopen(request, timeout=processes.LIMIT_SECONDS)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            raw = answer.read()
        content = json.loads(raw) if answer.headers["content-type"].startswith("application/json") else {"text": raw.decode()}
        return answer.status, content, {name.lower(): value for name, value in answer.headers.items()}

    def metric(self, name: str) -> float:
        """A sample of /metrics; those with a label are not there before the first one is counted."""
        text: str = self.ask(path="/metrics")[1]["text"]
        found = [float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + " ")]
        assert found or "{" in name, f"no {name}"
        return found[0] if found else 0

    def wait_for_corpus(self) -> None:
        """Until it can say what is copied."""
        processes.wait_until(lambda: "/v1/copied " in self.log, "the index of the training text")
        assert "/v1/copied looks into" in self.log, self.log

    def stop(self) -> int:
        """Ask it to stop; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(processes.LIMIT_SECONDS)


@pytest.fixture(scope="session")
def start_server(make_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts servers, of the tiny GPT-2 unless another model is named, and ends them at the end of the session."""
    started: list[Server] = []

    def start(*options: str, model: Path | None = None, checkout: Path = ROOT, **environment: str) -> Server:
        log = tmp_path_factory.mktemp("server") / "log.txt"
        chosen = [] if model else ["--name", "tiny"]
        started.append(Server(model or make_folder("gpt2"), log, *chosen, *options, checkout=checkout, **environment))
        return started[-1]

    yield start
    for server in started:
        processes.end(server.process)


@pytest.fixture(scope="session")
def server(start_server: Callable[..., Server]) -> Server:
    """One with default limits, for all tests that leave it as it is."""
    return start_server()


@pytest.fixture(scope="session", params=["tiny", pytest.param("quickstart", marks=MARKS)])
def served(request: pytest.FixtureRequest) -> Server:
    """What is said of a server holds for a model with random weights and, among the slow tests, for one that the quickstart trained."""
    if request.param == "tiny":
        return cast("Server", request.getfixturevalue("server"))
    start: Callable[..., Server] = request.getfixturevalue("start_server")
    server = start(model=request.getfixturevalue("quickstart"))
    server.wait_for_corpus()
    return server


@pytest.fixture(scope="session")
def known_texts(tmp_path_factory: pytest.TempPathFactory, verse: Path) -> KnownTexts:
    """Of a model that knows by heart what is in its training text and what is not."""
    return make_known_texts(tmp_path_factory.mktemp("known"), verse)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests of a file. Longer it must not run: it starts processes when it likes, which look like another test's."""
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    browser = Browser(program)
    yield browser
    browser.close()
