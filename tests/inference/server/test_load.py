"""Many clients at once: nobody gets anything but a text or 503 with Retry-After, and memory stays what it was."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.inference.server.conftest import Server
from tests.inference.server.test_refusals import PROMPT, ask

# Python's allocator and the C library keep what they have freed; a row that were kept, or a text, would be more after many requests.
SLACK_BYTES = 40 * 2**20


@pytest.mark.parametrize(("clients", "seconds"), [(8, 3), pytest.param(64, 60, marks=pytest.mark.slow)])
def test_clients_at_once_get_texts_or_are_told_to_come_back(start_server: Callable[..., Server], clients: int, seconds: float) -> None:
    server = start_server("--max-queue", "24")
    counts: Counter[int] = Counter()
    _load(server, clients, 2, Counter())
    before = _memory(server)
    _load(server, clients, seconds, counts)
    after = _memory(server)
    assert set(counts) <= {200, 503}, counts
    assert counts[200] > clients
    assert after - before < SLACK_BYTES, f"{before} bytes, then {after}"
    assert server.stop() == 143
    assert "Traceback" not in server.log


def _load(server: Server, clients: int, seconds: float, counts: Counter[int]) -> None:
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        asked = 0
        while time.monotonic() < end or asked == 0:
            asked += 1
            body = {
                "model": "tiny",
                "prompt": PROMPT[: 1 + asked % 5],
                "max_tokens": 1 + 7 * (asked % 9),
                "n": 1 + asked % 2,
                "seed": asked,
            }
            status, answer, headers = ask(server, body)
            counts[status] += 1
            if status == 503:
                assert int(headers["retry-after"]) >= 1
                time.sleep(0.2)
            elif status == 200:
                assert all(choice["finish_reason"] in ("stop", "length") for choice in answer["choices"])

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))


def _memory(server: Server) -> int:
    """Resident bytes of the server's process."""
    pages = Path(f"/proc/{server.process.pid}/statm").read_text(encoding="utf-8").split()[1]
    return int(pages) * 4096
