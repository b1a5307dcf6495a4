"""Malformed requests: made from the OpenAPI description, and random bytes. No answer is a 5xx, none tells of this machine, none hangs."""

from __future__ import annotations

import contextlib
import random
import socket
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from tests import ROOT, processes
from tests.inference.server.conftest import Server

pytestmark = pytest.mark.processes

LEAKS = (str(ROOT), "Traceback", 'File "', "site-packages", "inference/server")


@pytest.mark.parametrize("number", [150, pytest.param(5000, marks=pytest.mark.slow)])
def test_requests_made_from_the_description_get_an_answer(server: Server, number: int) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/v1/completions", "/v1/models", "/v1/copied", "/health", "/metrics"}
    statuses: list[int] = []
    for operation in operations:
        posts = operation.method.upper() == "POST"
        for mode in GenerationMode:
            _call(operation, mode, max(2, number // (3 if posts else 30)), statuses)
    assert len(statuses) >= number
    assert set(statuses) <= {200, 400, 404, 405}
    assert 400 in statuses


def _call(operation: Any, mode: GenerationMode, number: int, statuses: list[int]) -> None:
    try:
        strategy = operation.as_strategy(generation_mode=mode)
    except schemathesis.errors.SchemathesisError:
        return

    @settings(
        max_examples=number,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def call(case: Any) -> None:
        response = case.call(timeout=processes.LIMIT_SECONDS)
        statuses.append(response.status_code)
        assert response.status_code < 500, response.text
        assert not [leak for leak in LEAKS if leak in response.text]

    with contextlib.suppress(Unsatisfiable):  # a path that takes nothing cannot be asked wrongly
        call()


@pytest.mark.parametrize("number", [150, pytest.param(5000, marks=pytest.mark.slow)])
def test_random_bytes_get_a_4xx_or_a_closed_connection(server: Server, number: int) -> None:
    """Half of them are not HTTP, and half are a proper head with a body of noise."""
    chance = random.Random(number)
    for index in range(number):
        noise = chance.randbytes(chance.randint(1, 400))
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.settimeout(processes.LIMIT_SECONDS)
            connection.sendall(noise + b"\r\n\r\n" if index % 2 else head % len(noise) + noise)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65536)
        assert not answer or answer.startswith(b"HTTP/1.1 4"), answer
        assert not [leak for leak in LEAKS if leak.encode() in answer]
