"""The HTTP server around the application: connections and their limit, and a stop that lets texts be finished.

Every request passes a guard before it is looked at, and every answer on its way out: key, host, size, time, headers.
"""

import asyncio
import hmac
import http
import ipaddress
import logging
import socket
import sys
from types import FrameType

import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from inference.server.batcher import Batcher
from inference.server.errors import ApiError, as_api_error, busy
from inference.server.limits import Limits
from inference.server.metrics import Metrics

logger = logging.getLogger(__name__)

# Paths that tell nothing about a model or its use.
_OPEN = ("/", "/health", "/openapi.json")
_PATHS = ("/", "/health", "/metrics", "/openapi.json", "/v1/completions", "/v1/copied", "/v1/info", "/v1/models")


def serve(app: ASGIApp, listener: socket.socket, batcher: Batcher) -> int:
    """Answer requests until a signal, then let texts be finished. Returns the exit code, 128 + the signal's number."""
    config = uvicorn.Config(
        app,
        http=_protocol(batcher.limits, batcher.metrics),
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=int(batcher.limits.grace_seconds) + 5,
    )
    server = _Server(config, batcher)
    batcher.start()
    try:
        server.run(sockets=[listener])
    finally:
        batcher.stop()
    return 128 + server.received[0] if server.received else 1


class _Server(uvicorn.Server):
    """Ends texts that are not finished within the grace period with an error that says so, before connections are cut."""

    def __init__(self, config: uvicorn.Config, batcher: Batcher) -> None:
        super().__init__(config)
        self._batcher = batcher
        self.received: list[int] = []

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A second signal ends the grace period: uvicorn would cut the connections, with a traceback for each."""
        self.received.append(sig)
        if self.should_exit:
            self._batcher.wind_down(at_once=True)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        seconds = self._batcher.limits.grace_seconds
        print(f"inference.serve: stopping; texts have {seconds:g} s to be finished.", file=sys.stderr, flush=True)
        self._batcher.wind_down()
        ending = asyncio.get_running_loop().call_later(seconds, lambda: self._batcher.wind_down(at_once=True))
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


class Guard:
    """ASGI middleware, outside of everything else. Without a key, only who asks for this machine by a name of its own is served."""

    def __init__(self, app: ASGIApp, key: str | None, limits: Limits, metrics: Metrics, policy: str) -> None:
        self._app, self._key, self._limits, self._metrics = app, key, limits, metrics
        self._headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request: the server has neither web sockets nor a lifespan."""
        answer = _Answer(self._headers, self._limits.request_seconds, send)
        path = scope["path"]
        try:
            headers = Headers(scope=scope)
            self._check_access(path, headers)
            await self._app(scope, _Body(self._limits, headers, receive), answer.send)
        except Exception as error:
            if not isinstance(error, ApiError):
                logger.exception("inference.serve: %s %s failed", scope["method"], path)
            if not answer.status:
                await as_api_error(error).response()(scope, receive, answer.send)
        finally:
            self._metrics.requests.labels(path if path in _PATHS else "other", str(answer.status or "none")).inc()

    def _check_access(self, path: str, headers: Headers) -> None:
        """Let a request through, or not.

        Raises:
            ApiError: 401 without the key; 403 when a page of somebody else's has been made to point here (DNS rebinding).
        """
        if self._key is None:
            if not _is_this_machine(headers.get("host", "")):
                raise ApiError(403, "without an API key, this server answers only to localhost and loopback addresses (127.0.0.1, [::1]).")
        elif path not in _OPEN:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._key.encode())
            if scheme.lower() != "bearer" or not right:
                advice = {"WWW-Authenticate": "Bearer"}
                raise ApiError(401, 'an API key is needed: "Authorization: Bearer KEY".', code="invalid_api_key", headers=advice)


def _is_this_machine(host: str) -> bool:
    """Whether a Host header gives localhost or a loopback address. Any other name may be made to point here by somebody else."""
    name = (host if host.endswith("]") else host.rsplit(":", 1)[0]).lower().removesuffix(".")
    try:
        return name == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


class _Body:
    """Receives a request's body up to the limit of bytes and seconds."""

    def __init__(self, limits: Limits, headers: Headers, receive: Receive) -> None:
        self._limits, self._receive = limits, receive
        self._num_bytes, self._complete = 0, False
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > limits.max_body_bytes:
            raise self._too_large()

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()  # waits for the client to hang up
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                message = await self._receive()
        except TimeoutError:
            raise _unread(408, f"the request did not arrive within {self._limits.request_seconds:g} s.") from None
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._limits.max_body_bytes:
            raise self._too_large()
        self._complete = not message.get("more_body", False)
        return message

    def _too_large(self) -> ApiError:
        return _unread(413, f"the body is larger than {self._limits.max_body_bytes} bytes.")


def _unread(status: int, message: str) -> ApiError:
    """For a body whose rest is not read, so that no other request can follow it."""
    return ApiError(status, message, headers={"Connection": "close"})


class _Answer:
    """Sends an answer with the headers that all have, and gives up a client that does not take it."""

    def __init__(self, headers: dict[str, str], seconds: float, send: Send) -> None:
        self.status = 0
        self._headers, self._seconds, self._send = headers, seconds, send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message).update(self._headers)
        try:
            async with asyncio.timeout(self._seconds):
                await self._send(message)
        except TimeoutError:
            raise OSError("the client takes nothing") from None
