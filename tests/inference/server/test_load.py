"""Many clients at once: they get a text, the one written alone, or 503 with Retry-After; and memory stays what it was."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from inference.generation.engine import load_engine
from inference.generation.settings import SamplingParams
from inference.generation.writing import generate
from tests.inference.server.conftest import Server
from tests.inference.server.test_refusals import PROMPT

pytestmark = pytest.mark.processes

# Python's allocator and the C library keep what they have freed; a row that were kept, or a text, would be more after many requests.
SLACK_BYTES = 40 * 2**20


class Load:
    """What clients have got: answers by status, and of request number N the texts that any client got."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.texts: dict[int, set[tuple[str, ...]]] = defaultdict(set)


@pytest.mark.parametrize(("clients", "seconds"), [(8, 3), pytest.param(64, 60, marks=pytest.mark.slow)])
def test_clients_at_once_get_texts_or_are_told_to_come_back(start_server: Callable[..., Server], clients: int, seconds: float) -> None:
    server = start_server("--max-queue", "24")
    _load(server, clients, 2)
    before = _memory(server)
    load = _load(server, clients, seconds)
    after = _memory(server)
    assert set(load.statuses) <= {200, 503}, load.statuses
    assert load.statuses[200] > clients
    assert after - before < SLACK_BYTES, f"{before} bytes, then {after}"
    different = _different(server, load)
    assert different <= server.metric("honglou_close_draws_total"), f"{different} texts are not those written alone"
    assert server.stop() == 143
    assert "Traceback" not in server.log


def _request(number: int) -> dict[str, Any]:
    return {
        "model": "tiny",
        "prompt": PROMPT[: 1 + number % 5],
        "max_tokens": 1 + 7 * (number % 9),
        "n": 1 + number % 2,
        "seed": number,
    }


def _load(server: Server, clients: int, seconds: float) -> Load:
    end, load = time.monotonic() + seconds, Load()

    def client(_: int) -> None:
        number = 0
        while time.monotonic() < end or number == 0:
            number += 1
            status, answer, headers = server.ask(_request(number))
            load.statuses[status] += 1
            if status == 503:
                assert int(headers["retry-after"]) >= 1
                time.sleep(0.2)
            elif status == 200:
                assert all(choice["finish_reason"] in ("stop", "length") for choice in answer["choices"])
                load.texts[number].add(tuple(choice["text"] for choice in answer["choices"]))

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return load


def _different(server: Server, load: Load) -> int:
    """Texts that differ from those written alone with the same seed, by the engine in this process."""
    engine = load_engine(server.folder)
    different = 0
    for number, found in load.texts.items():
        request = _request(number)
        prompt = engine.tokenizer.encode(request["prompt"])
        settings = [SamplingParams(new_tokens=request["max_tokens"], temperature=1, top_p=1, seed=number + i) for i in range(request["n"])]
        alone = [generate(engine, [prompt], one)[0].text for one in settings]
        different += sum(text != own for texts in found for text, own in zip(texts, alone, strict=True))
    return different


def _memory(server: Server) -> int:
    """Resident bytes of the server's process."""
    pages = Path(f"/proc/{server.process.pid}/statm").read_text(encoding="utf-8").split()[1]
    return int(pages) * 4096
