"""The HTTP server: connections and their limit, and a stop that lets texts be finished."""

from __future__ import annotations

import asyncio
import http
import signal
import socket
import sys

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from inference.server.batcher import Batcher
from inference.server.errors import ApiError, busy
from inference.server.limits import Limits
from inference.server.metrics import Metrics


def serve(app: ASGIApp, listener: socket.socket, batcher: Batcher, limits: Limits, metrics: Metrics) -> int:
    """Answer requests until a signal, then let texts be finished. Returns the exit code, 128 + the signal's number."""
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn has handlers of its own while it runs, and raises what it has received again when it has ended.
        signal.signal(number, lambda number, frame: received.append(number))
    config = uvicorn.Config(
        app,
        http=_protocol(limits, metrics),
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=int(limits.grace_seconds) + 5,
    )
    batcher.start()
    try:
        _Server(config, batcher, limits.grace_seconds).run(sockets=[listener])
    finally:
        batcher.stop()
    return 128 + received[0] if received else 1


class _Server(uvicorn.Server):
    """Ends texts that are not finished within the grace period with an error that says so, before connections are cut."""

    def __init__(self, config: uvicorn.Config, batcher: Batcher, grace_seconds: float) -> None:
        super().__init__(config)
        self._batcher, self._grace_seconds = batcher, grace_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        print(f"inference.serve: stopping; texts have {self._grace_seconds:g} s to be finished.", file=sys.stderr, flush=True)
        self._batcher.wind_down()
        ending = asyncio.get_running_loop().call_later(self._grace_seconds, self._batcher.give_up)
        await super().shutdown(sockets)
        ending.cancel()


def _protocol(limits: Limits, metrics: Metrics) -> type[H11Protocol]:
    """Make uvicorn's protocol, which refuses connections beyond the limit, and ends those on which no request arrives in time."""

    class Protocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            metrics.connections.set(len(self.connections))
            if len(self.connections) > limits.max_connections:
                self._say_and_close(busy(f"{limits.max_connections} connections are open already. Try again a little later."))
            else:
                self._deadline = self.loop.call_later(limits.request_seconds, transport.close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            # uvicorn limits the time between two requests only, not that in which one dribbles in.
            if self.cycle is None or self.cycle.response_complete:
                self._deadline = self._deadline or self.loop.call_later(limits.request_seconds, self.transport.close)
            else:
                self._forget_deadline()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget_deadline()
            super().connection_lost(exc)
            metrics.connections.set(len(self.connections))

        def send_400_response(self, msg: str) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                self.transport.close()  # in the midst of an answer, another one would be read as part of it
            else:
                self._say_and_close(ApiError(400, "this is not HTTP/1.1."))

        def _say_and_close(self, error: ApiError) -> None:
            status, answer = error.status_code, error.response()
            metrics.requests.labels("other", str(status)).inc()
            head = f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\nConnection: close\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
            self.transport.write(head.encode() + b"\r\n" + answer.body)
            self.transport.close()

        def _forget_deadline(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return Protocol
