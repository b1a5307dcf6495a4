"""What is said when a request cannot be served: OpenAI's error object, and nothing about this machine."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException


class ApiError(HTTPException):
    """An answer other than 200. Extra headers say what to do, such as Retry-After."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int = 0) -> None:
        headers = {"Retry-After": str(retry_after)} if retry_after else {}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if status in (408, 413):
            headers["Connection"] = "close"  # the rest of the body is not read
        super().__init__(status, message, headers)
        self.status, self.message, self.param, self.code, self.advice = status, message, param, code, headers

    def body(self) -> dict[str, Any]:
        """The object that the openai client reads."""
        kinds = {401: "authentication_error", 404: "not_found_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def busy(message: str) -> ApiError:
    """503: the same request may succeed a little later."""
    return ApiError(503, message, code="overloaded", retry_after=2)


def of_validation(errors: list[Any]) -> ApiError:
    """The first thing that is wrong with a body, by the name of its parameter."""
    first = errors[0]
    where = [str(part) for part in first["loc"] if part != "body"]
    name = where[0] if where else None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{name} is not supported here. Leave it out.", param=name, code="unsupported_parameter")
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not JSON.", code="invalid_json")
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{name}: {message}." if name else f"the body: {message}.", param=name, code="invalid_value")
