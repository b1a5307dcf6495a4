"""The web application: its paths, and what each answers."""

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from inference.server import schemas
from inference.server.completions import CompletionService, PendingCompletion
from inference.server.copied import CopyFinder
from inference.server.errors import ApiError, as_api_error
from inference.server.http_server import Guard

_PAGE = (Path(__file__).with_name("static") / "index.html").read_text(encoding="utf-8")
_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": schemas.Error} for status in (400, 401, 403, 404, 405, 408, 413, 503)}
router = APIRouter(responses=_ERRORS)


def build_app(service: CompletionService, copy_finder: CopyFinder, key: str | None) -> Guard:
    """The application, with the guard around it; with a key, only who has it is served."""
    app = FastAPI(
        title="Honglou",
        description="Continues text with a trained model. Compatible with OpenAI's completions.",
        version="1",
        docs_url=None,  # these pages would load scripts from another host
        redoc_url=None,
    )
    app.state.service, app.state.copy_finder = service, copy_finder
    app.include_router(router)
    for kind in (HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _answer_error)
    return Guard(app, key, service.batcher.limits, service.batcher.metrics, _content_security_policy(_PAGE))


async def _answer_error(request: Request, error: Exception) -> Response:
    return as_api_error(error).response()  # the guard logs what is no mistake of the client's


def _content_security_policy(page: str) -> str:
    """Lets the page run its own script and style, known by their hashes, and speak to this server; nothing else."""

    def hashes(tag: str) -> str:
        blocks = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'" for block in blocks) or "'none'"

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _service(request: Request) -> CompletionService:
    return cast(CompletionService, request.app.state.service)


@router.get("/", response_class=HTMLResponse)
async def page() -> HTMLResponse:
    """The page for people."""
    return HTMLResponse(_PAGE)


@router.get("/health")
async def health(request: Request) -> dict[str, str]:
    """200 while texts can be written, otherwise 503."""
    if not _service(request).batcher.alive:
        raise ApiError(503, "no text can be written; restart the server.")
    return {"status": "ok"}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(_service(request).batcher.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/models")
async def models(request: Request) -> schemas.Models:
    """The model that is served."""
    service = _service(request)
    return schemas.Models(data=[schemas.Model(id=service.model, created=service.created)])


@router.get("/v1/models/{name:path}")  # a name may have slashes, as the hub's do
async def model(name: str, request: Request) -> schemas.Model:
    """The same by its name."""
    _service(request).check_model(name)
    return (await models(request)).data[0]


@router.get("/v1/info")
async def info(request: Request) -> schemas.Info:
    """Limits, and what this server can do."""
    service, limits = _service(request), _service(request).batcher.limits
    return schemas.Info(
        model=service.model,
        context_length=limits.max_context,
        max_tokens=limits.max_tokens,
        max_prompt_tokens=limits.max_prompt_tokens,
        max_choices=limits.most_choices,
        copied=request.app.state.copy_finder.available,
    )


async def _pending(body: schemas.CompletionRequest, request: Request) -> AsyncIterator[PendingCompletion]:
    """The texts of a request, which are given up when the answer ends, however it does."""
    pending = _service(request).begin(body)
    try:
        yield pending
    finally:
        pending.cancel()


@router.post("/v1/completions", response_model=schemas.Completion)
async def completions(pending: Annotated[PendingCompletion, Depends(_pending)], request: Request) -> Response:
    """Continue one or several prompts."""
    if pending.request.stream:
        return StreamingResponse(pending.events(), media_type="text/event-stream")
    return JSONResponse((await _unless_gone(request, pending)).model_dump())


@router.post("/v1/copied")
def copied(body: schemas.CopiedRequest, request: Request) -> schemas.Copied:  # no coroutine: FastAPI gives it a thread
    """Which stretches of a text stand word for word in the training corpus."""
    return cast(schemas.Copied, request.app.state.copy_finder.copied(body.text))


async def _unless_gone(request: Request, pending: PendingCompletion) -> schemas.Completion:
    """All texts; given up when the client hangs up."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    writing, leaving = asyncio.ensure_future(pending.whole()), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not writing.done():
            raise ApiError(499, "the client has left.")
        return writing.result()
    finally:
        writing.cancel()
        leaving.cancel()
