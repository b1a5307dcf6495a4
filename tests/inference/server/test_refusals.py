"""What the server does not do: limits, keys, other hosts, and stops."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from inference.serve import main
from tests import processes
from tests.inference.server.conftest import KEY, Server

pytestmark = pytest.mark.processes

PROMPT = "床前明月光，"
# Ids of the padded vocabulary are no tokens, and a text of random weights seldom ends by itself.
LONG = {"model": "tiny", "prompt": "红", "max_tokens": 240, "temperature": 0}


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"best_of": 3}, "best_of", "best_of is not supported here. Leave it out."),
        ({"presence_penalty": 0.5}, "presence_penalty", "presence_penalty is not supported here"),
        ({"top_k": 5}, "top_k", "top_k is not supported here"),
        ({"temperature": -1}, "temperature", "temperature: "),
        ({"temperature": 0.001}, "temperature", "must be 0 (greedy) or at least 0.01"),
        ({"max_tokens": "5"}, "max_tokens", "max_tokens: "),
        ({"max_tokens": 0}, None, "max_tokens = 0 needs echo"),
        ({"max_tokens": 257}, "max_tokens", "at most 256 are written"),
        ({"max_tokens": 250}, "max_tokens", "Ask for at most "),
        ({"prompt": ""}, "prompt", "has no tokens"),
        ({"prompt": []}, "prompt", "there is none"),
        ({"prompt": [100000]}, "prompt", "100000 is no token"),
        ({"prompt": PROMPT * 200}, "prompt", "at most 255 are read"),
        ({"prompt": "\ud800"}, "prompt", "half a surrogate pair"),
        ({"n": 17}, "n", "at most 16 texts"),
        ({"prompt": [5, -1]}, "prompt", "prompt: Input should be greater than or equal to 0."),
        ({"prompt": ["a", 5]}, "prompt", "prompt: Input should be a text, token ids, or a list of either."),
        ({"stop": ["a"] * 5}, "stop", "stop: List should have at most 4 items"),
        ({"stop": 5}, "stop", "stop: Input should be a text or a list of texts."),
        ({"stream": True, "stream_options": {"include_obfuscation": False}}, "stream_options.include_obfuscation", "is not supported here"),
        ({"logprobs": 6}, "logprobs", "logprobs: "),
    ],
)
def test_what_is_not_supported_or_out_of_bounds_is_refused_by_name(
    server: Server, changes: dict[str, Any], param: str | None, message: str
) -> None:
    status, answer, _ = server.ask({"model": "tiny", "prompt": PROMPT, **changes})
    assert status == 400
    assert message in answer["error"]["message"]
    assert answer["error"]["param"] == param


def test_parameters_without_effect_are_accepted(server: Server) -> None:
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 2, "best_of": 1, "presence_penalty": 0.0, "logit_bias": {}, "user": "me"}
    assert server.ask(body)[0] == 200


def test_paths_methods_and_bodies_that_do_not_exist_get_openais_error(server: Server) -> None:
    assert server.ask(path="/nowhere")[0] == 404
    assert server.ask(path="/v1/completions")[0] == 405
    status, answer, _ = server.ask(b"{")
    assert (status, answer["error"]["code"]) == (400, "invalid_json")
    status, answer, _ = server.ask(b'{"model": "tiny"}', **{"Content-Type": "application/x-www-form-urlencoded"})
    assert (status, answer["error"]["message"]) == (400, "the body is no JSON object that was sent with Content-Type: application/json.")
    # It is told by its length. The body itself is not sent: the server closes the connection, and would do so in the middle of it.
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=processes.LIMIT_SECONDS)
    connection.putrequest("POST", "/v1/completions")
    for name, value in (("Content-Type", "application/json"), ("Content-Length", "1048577")):
        connection.putheader(name, value)
    connection.endheaders()
    refused = connection.getresponse()
    assert (refused.status, json.loads(refused.read())["error"]["message"]) == (413, "the body is larger than 1048576 bytes.")
    assert refused.headers["connection"] == "close"
    connection.close()
    # A deep body is no reason to fail.
    assert server.ask(b'{"prompt":' + b"[" * 100_000)[0] == 400


def test_the_page_may_load_nothing_from_elsewhere(server: Server) -> None:
    status, answer, headers = server.ask(path="/")
    assert status == 200
    assert "<html" in answer["text"]
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


def test_a_page_of_somebody_elses_cannot_use_a_server_without_a_key(server: Server) -> None:
    status, answer, _ = server.ask(path="/v1/models", Host="evil.example:8000")
    assert status == 403
    assert "127.0.0.1" in answer["error"]["message"]
    assert server.ask(path="/v1/models", Host="127.0.0.1.evil.example")[0] == 403
    assert server.ask(path="/v1/models", Host="localhost.evil.example.")[0] == 403
    for name in ("localhost", "LOCALHOST:8000", "localhost.:8000", "127.0.0.1:8000", "127.0.0.2:8000", "[::1]:8000", "[0:0:0:0:0:0:0:1]"):
        assert server.ask(path="/v1/models", Host=name)[0] == 200
    # A browser sends text/plain to anybody without asking; what is not JSON by its header is not read as JSON.
    assert server.ask(json.dumps({"model": "tiny", "prompt": PROMPT}).encode(), **{"Content-Type": "text/plain"})[0] == 400


def test_a_server_that_others_reach_needs_a_key_and_asks_for_it(
    make_folder: Callable[[str], Path], start_server: Callable[..., Server], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(make_folder("gpt2"))
    capsys.readouterr()  # What making the folder may have said.
    assert main([folder, "--host", "0.0.0.0", "--port", "0"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("inference.serve: --host 0.0.0.0: others can reach it, so a key is needed. Set HONGLOU_API_KEY")
    assert said.count("\n") == 1
    server = start_server("--host", "0.0.0.0", "--request-seconds", "2", "--grace-seconds", "0", HONGLOU_API_KEY=KEY)
    for wrong in ({}, {"Authorization": "Bearer " + KEY[:-1]}, {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer ä" + KEY}):
        for path in ("/v1/models", "/v1/info", "/metrics"):
            assert server.ask(path=path, **wrong)[0] == 401
        assert server.ask({"model": "tiny", "prompt": PROMPT}, **wrong)[0] == 401
    assert server.ask(path="/health")[0] == 200
    assert server.ask(path="/")[0] == 200
    client = OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
    # The text of three tokens of an untrained model may be empty.
    assert client.completions.create(model="tiny", prompt=PROMPT, max_tokens=3).choices[0].finish_reason in ("length", "stop")
    assert KEY not in server.log
    _gives_up_what_dribbles_in(server.port)

    # No grace: a text that is not finished ends with an error that says why.
    stream = client.completions.create(**LONG, stream=True)  # type: ignore[call-overload]
    next(stream)
    server.process.send_signal(signal.SIGINT)
    try:
        reason = list(stream)[-1].choices[0].finish_reason
    except openai.APIError as error:
        reason = str(error)
    assert reason in ("the server is stopping.", "length", "stop")
    assert server.process.wait(processes.LIMIT_SECONDS) == 128 + signal.SIGINT
    assert "Traceback" not in server.log


def test_a_second_signal_ends_the_grace_period_and_leaves_no_traceback(start_server: Callable[..., Server]) -> None:
    server = start_server("--grace-seconds", "600")
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    stream = client.completions.create(**LONG, n=16, stream=True)  # type: ignore[call-overload]
    next(stream)
    processes.wait_until(lambda: server.metric("honglou_texts_running") == 16, "all texts to be begun")
    server.process.send_signal(signal.SIGINT)
    processes.wait_until(lambda: "stopping" in server.log, "the end to begin")
    server.process.send_signal(signal.SIGINT)
    with pytest.raises(openai.APIError, match="the server is stopping"):
        list(stream)
    assert server.process.wait(processes.LIMIT_SECONDS) == 128 + signal.SIGINT
    assert "Traceback" not in server.log


def _gives_up_what_dribbles_in(port: int) -> None:
    """The head of a request, and its body."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + KEY.encode()
    with socket.create_connection(("127.0.0.1", port), timeout=processes.LIMIT_SECONDS) as connection:
        connection.sendall(head)
        assert connection.recv(1000) == b""
    with socket.create_connection(("127.0.0.1", port), timeout=processes.LIMIT_SECONDS) as connection:
        connection.sendall(head + b"\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-context", "300"], "--max-context 300: the model of"),
        (["--max-context", "0"], "max context = 0; it must be 1 or more"),
        (["--max-context", "32", "--max-prompt-tokens", "64"], "max prompt tokens = 64; it must be at most max context = 32."),
        (["--max-queue", "0"], "max queue = 0; it must be 1 or more"),
        (["--grace-seconds", "inf"], "grace seconds = inf; it must be 0 or more, and finite"),
        (["--request-seconds", "nan"], "request seconds = nan; it must be 1 or more"),
        (["--host", "example.com"], "is no address"),
        (["--port", "70000"], "cannot be listened at"),
        (["--api-key-file", "nowhere"], "nowhere: cannot be read"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    make_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main([str(make_folder("gpt2")), *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("inference.serve: ")
    assert said.count("\n") == 1


def test_beyond_queue_and_connections_a_client_is_told_when_to_come_back(start_server: Callable[..., Server]) -> None:
    """Then a client hangs up, which frees its row, and the server is stopped while others write."""
    server = start_server("--max-batch", "1", "--max-queue", "1", "--max-connections", "6", "--request-seconds", "60")
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.ask(LONG), range(6)))
    statuses = [status for status, _, _ in answers]
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= 2
    assert statuses.count(503) >= 1
    assert all(int(headers["retry-after"]) > 0 for status, _, headers in answers if status == 503)

    # More than are ever written and wait together: coming back later would not help.
    assert server.ask({**LONG, "n": 3})[0] == 400
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(7)]
    refused = idle[-1].recv(10_000)
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: " in refused.lower()
    for connection in idle:
        connection.close()
    processes.wait_until(lambda: _reaches(server), "closed connections to be forgotten")

    stream = client.completions.create(**LONG, stream=True)  # type: ignore[call-overload]
    next(stream)
    cancelled = server.metric('honglou_texts_total{reason="cancelled"}')
    stream.response.close()
    processes.wait_until(lambda: server.metric("honglou_texts_running") == 0, "the row of a client that hung up")
    assert server.metric('honglou_texts_total{reason="cancelled"}') == cancelled + 1

    stream = client.completions.create(**LONG, stream=True)  # type: ignore[call-overload]
    pieces = [next(stream)]
    server.process.send_signal(signal.SIGTERM)
    pieces += list(stream)
    assert pieces[-1].choices[0].finish_reason in ("length", "stop")
    # No second signal: after the server has ended its texts, it ends a process that is going anyway.
    assert server.process.wait(processes.LIMIT_SECONDS) == 128 + signal.SIGTERM
    assert "Traceback" not in server.log


def _reaches(server: Server) -> bool:
    try:
        return server.ask(path="/health")[0] == 200
    except OSError:
        time.sleep(0.05)
        return False
