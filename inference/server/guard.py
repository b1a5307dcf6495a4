"""What every request passes before it is looked at, and every answer on its way out: key, host, size, time, headers."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inference.server.errors import ApiError, as_api_error
from inference.server.limits import Limits
from inference.server.metrics import Metrics

logger = logging.getLogger(__name__)

# Paths that tell nothing about a model or its use.
_OPEN = ("/", "/health", "/openapi.json")
_PATHS = ("/", "/health", "/metrics", "/openapi.json", "/v1/completions", "/v1/copied", "/v1/info", "/v1/models")


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
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
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
        return None

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
    name = host if host.endswith("]") else host.rsplit(":", 1)[0]
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
