"""What is said when a request cannot be served: OpenAI's error object, and nothing about this machine."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from inference.server.schemas import Error, ErrorObject

_SEVERAL_TYPES = {"prompt": "a text, token ids, or a list of either", "stop": "a text or a list of texts"}


class ApiError(HTTPException):
    """An answer other than 200. Extra headers say what to do, such as Retry-After."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, headers)
        self.param, self.code = param, code

    def body(self) -> str:
        """The object that the openai client reads, as JSON."""
        kinds = {401: "authentication_error", 404: "not_found_error"}
        kind = kinds.get(self.status_code, "invalid_request_error" if self.status_code < 500 else "server_error")
        return Error(error=ErrorObject(message=self.detail, type=kind, param=self.param, code=self.code)).model_dump_json()

    def response(self) -> Response:
        """The answer."""
        return Response(self.body(), self.status_code, self.headers, "application/json")


def busy(message: str) -> ApiError:
    """503: the same request may succeed a little later."""
    return ApiError(503, message, code="overloaded", headers={"Retry-After": "2"})


def as_api_error(error: Exception) -> ApiError:
    """What is answered when this was raised. What is no mistake of the client's is for the caller to log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _of_validation(error.errors())
    if isinstance(error, HTTPException):
        says = {404: "there is nothing at this path.", 405: "this method is not allowed here."}
        return ApiError(error.status_code, says.get(error.status_code, "the request cannot be read."), headers=error.headers)
    return ApiError(500, "the server failed; its log says why.")


def _of_validation(errors: Sequence[Any]) -> ApiError:
    """By the name of the parameter. Of one that may have several types, what is wrong with a value of one of them tells most."""
    wrong = next((one for one in errors if not one["type"].endswith("_type")), errors[0])
    name = next((str(part) for part in wrong["loc"] if part != "body"), None)
    if wrong["type"] == "extra_forbidden":
        name = ".".join(map(str, wrong["loc"][1:]))
        return ApiError(400, f"{name} is not supported here. Leave it out.", param=name, code="unsupported_parameter")
    if wrong["type"] == "json_invalid":
        return ApiError(400, "the body is not JSON.", code="invalid_json")
    if wrong["type"] in ("model_attributes_type", "model_type") and name is None:
        return ApiError(400, "the body is no JSON object that was sent with Content-Type: application/json.", code="invalid_value")
    message = wrong["msg"].removeprefix("Value error, ")
    if wrong["type"].endswith("_type") and name in _SEVERAL_TYPES:
        message = f"Input should be {_SEVERAL_TYPES[name]}"
    return ApiError(400, f"{name or 'the body'}: {message}.", param=name, code="invalid_value")
