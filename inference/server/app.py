"""The web application: its paths, and what each answers."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from inference.server import schemas
from inference.server.completions import Job, Writer
from inference.server.corpus import Corpus
from inference.server.errors import ApiError, of_validation
from inference.server.guard import Access, Guard

PAGE = Path(__file__).with_name("static") / "index.html"
_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": schemas.Error} for status in (400, 401, 403, 404, 405, 408, 413, 503)}
router = APIRouter(responses=_ERRORS)


@dataclass(frozen=True)
class Service:
    """Everything that the paths below need."""

    writer: Writer
    page: str
    corpus: Corpus
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def model(self) -> schemas.Model:
        """What is served."""
        return schemas.Model(id=self.writer.model, created=self.created)

    def check_model(self, name: str) -> None:
        """There is one model, and who means another should know."""
        if name != self.writer.model:
            raise ApiError(
                404, f'there is no such model here; this server has "{self.writer.model}".', param="model", code="model_not_found"
            )


def build_app(service: Service, access: Access) -> Guard:
    """The application, with the guard around it."""
    app = FastAPI(
        title="Honglou",
        description="Continues text with a trained model. Compatible with OpenAI's completions.",
        version="1",
        docs_url=None,  # these pages would load scripts from another host
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(router)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(Exception, _answer_failure)
    writer = service.writer
    return Guard(app, access, writer.limits, writer.metrics, content_security_policy(service.page))


def content_security_policy(page: str) -> str:
    """Lets the page run its own script and style, known by their hashes, and speak to this server; nothing else."""

    def hashes(tag: str) -> str:
        blocks = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'" for block in blocks) or "'none'"

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


@router.get("/", response_class=HTMLResponse)
async def page(request: Request) -> HTMLResponse:
    """The page for people."""
    return HTMLResponse(_service(request).page)


@router.get("/health")
async def health(request: Request) -> schemas.Health:
    """200 while texts can be written, otherwise 503."""
    if not _service(request).writer.batcher.alive:
        raise ApiError(503, "no text can be written; restart the server.")
    return schemas.Health()


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(_service(request).writer.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/models")
async def models(request: Request) -> schemas.Models:
    """The model that is served."""
    return schemas.Models(data=[_service(request).model])


@router.get("/v1/models/{name}")
async def model(name: str, request: Request) -> schemas.Model:
    """The same by its name."""
    _service(request).check_model(name)
    return _service(request).model


@router.get("/v1/info")
async def info(request: Request) -> schemas.Info:
    """Limits, and what this server can do."""
    service = _service(request)
    limits = service.writer.limits
    return schemas.Info(
        model=service.writer.model,
        context_length=limits.context_length,
        max_tokens=limits.max_tokens,
        max_prompt_tokens=limits.max_prompt_tokens,
        max_choices=limits.max_choices,
        copied=service.corpus.available,
    )


@router.post("/v1/completions", response_model=schemas.Completion)
async def completions(body: schemas.CompletionRequest, request: Request) -> Response:
    """Continue one or several prompts."""
    service = _service(request)
    service.check_model(body.model)
    job = service.writer.begin(body)
    if body.stream:
        return _Stream(job)
    try:
        return JSONResponse((await _unless_gone(request, job)).model_dump())
    finally:
        job.cancel()


@router.post("/v1/copied")
async def copied(body: schemas.CopiedRequest, request: Request) -> schemas.Copied:
    """Which stretches of a text stand word for word in the training corpus."""
    return await asyncio.to_thread(_service(request).corpus.copied, body.text)


async def _unless_gone(request: Request, job: Job) -> schemas.Completion:
    """All texts; given up when the client hangs up."""
    writing, leaving = asyncio.ensure_future(job.whole()), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not writing.done():
            raise ApiError(499, "the client has left.")
        return writing.result()
    finally:
        writing.cancel()
        leaving.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Stream(StreamingResponse):
    """Events of a job, which is given up when the answer ends, however it does."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.events(), media_type="text/event-stream")
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.cancel()


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if not isinstance(error, ApiError):
        says = {404: "there is nothing at this path.", 405: "this method is not allowed here."}
        headers = dict(error.headers or {})
        error = ApiError(error.status_code, says.get(error.status_code, "the request cannot be read."))
        error.advice |= headers
    return Response(json.dumps(error.body(), ensure_ascii=False), error.status, error.advice, "application/json")


async def _answer_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _answer_http(request, of_validation(list(error.errors())))


async def _answer_failure(request: Request, error: Exception) -> Response:
    # The guard logs it.
    return await _answer_http(request, ApiError(500, "the server failed; its log says why."))
