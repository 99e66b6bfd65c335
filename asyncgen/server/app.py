"""The ASGI application: OpenAI's protocol over an engine that is open. ``program`` runs it; so can any ASGI server."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Mapping
from pathlib import PurePath
from time import perf_counter
from typing import TypeVar

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import asyncgen
from asyncgen.config import Config
from asyncgen.engine import Engine
from asyncgen.errors import AsyncgenError
from asyncgen.server.answering import Answering
from asyncgen.server.answers import ChatStyle, ModelInfo, ModelList, Style, TextStyle
from asyncgen.server.document import openapi
from asyncgen.server.guard import Guard
from asyncgen.server.limits import Limits
from asyncgen.server.meters import Meters
from asyncgen.server.questions import ChatQuestion, TextQuestion
from asyncgen.server.refusals import Refusal, refusal_for, refusal_of_fields
from asyncgen.server.replies import EventStream, read_body, refused, while_there
from asyncgen.tasks import in_thread

__all__ = ["create_app", "model_id"]

_log = logging.getLogger(__name__)
_Question = TypeVar("_Question", ChatQuestion, TextQuestion)
_JSON = "application/json"
_LARGE = 2**16
"""Bytes that are read in a thread, for they take more than a millisecond."""
_GONE = 499
"""What nobody reads: the client has hung up."""


def create_app(engine: Engine, *, key: str | None = None) -> Starlette:
    """An application that answers with ``engine``, which is open and stays so; the ``server`` section of its
    configuration says the limits. ``key`` is what clients must send; without one, only requests to this machine's own
    names are answered (see ``guard``).

    While ``app.state.closing`` is true, new questions are refused and ``/health`` says so.
    """
    service = _Service(engine, keyed=key is not None)
    routes = [
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
        Route("/v1/completions", service.complete, methods=["POST"]),
        Route("/v1/models", service.models),
        Route("/v1/models/{model_id:path}", service.model),
        Route("/health", service.health),
        Route("/metrics", service.metrics),
        Route("/openapi.json", service.document),
    ]
    paths: dict[object, str] = {route.endpoint: route.path_format for route in routes}
    app = Starlette(
        routes=routes,
        middleware=[Middleware(_Watch, meters=service.meters, paths=paths), Middleware(Guard, key=key)],
        exception_handlers={
            **dict.fromkeys((Refusal, AsyncgenError, TimeoutError), _refuse),
            HTTPException: _refuse_path,
            ClientDisconnect: _answer_nobody,
        },
    )
    app.router.redirect_slashes = False  # it would send clients to whatever name they said
    app.state.closing = False
    return app


def model_id(config: Config) -> str:
    """What clients call the model."""
    name = config.model_name
    return config.server.model_id or (PurePath(name).name if PurePath(name).is_absolute() else name)


class _Service:
    """The endpoints."""

    def __init__(self, engine: Engine, *, keyed: bool) -> None:
        self.meters = Meters(engine)
        self._engine = engine
        self._model = model_id(engine.config)
        self._created = int(time.time())
        self._fingerprint = f"asyncgen-{asyncgen.__version__}"
        self._limits = Limits.of(engine.config, engine.limits.context_length)
        self._document = json.dumps(openapi(self._limits, self._model, asyncgen.__version__, keyed=keyed))

    async def chat(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        question = await self._question(request, ChatQuestion)
        return await self._reply(request, question, ChatStyle)

    async def complete(self, request: Request) -> Response:
        """``POST /v1/completions``."""
        question = await self._question(request, TextQuestion)
        return await self._reply(request, question, TextStyle)

    async def models(self, _: Request) -> Response:
        """``GET /v1/models``."""
        return Response(ModelList(data=[self._about()]).model_dump_json(), media_type=_JSON)

    async def model(self, request: Request) -> Response:
        """``GET /v1/models/{model_id}``."""
        self._check_model(request.path_params["model_id"])
        return Response(self._about().model_dump_json(), media_type=_JSON)

    async def health(self, request: Request) -> Response:
        """``GET /health``."""
        self._check_open(request)
        return Response('{"status": "ok"}', media_type=_JSON)

    async def metrics(self, request: Request) -> Response:
        """``GET /metrics``."""
        content, media_type = self.meters.exposition(request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": media_type})

    async def document(self, _: Request) -> Response:
        """``GET /openapi.json``."""
        return Response(self._document, media_type=_JSON)

    async def _question(self, request: Request, kind: type[_Question]) -> _Question:
        self._check_open(request)
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != _JSON:
            message = f"found Content-Type {media_type[:100]!r}, expected {_JSON} (curl: -H 'Content-Type: {_JSON}')"
            raise Refusal(415, "unsupported_media_type", message)
        body = await read_body(request, self._limits.body)
        question = _read(kind, body) if len(body) < _LARGE else await in_thread(_read, kind, body)
        self._check_model(question.model, "model")
        return question

    async def _reply(self, request: Request, question: ChatQuestion | TextQuestion, write: type[Style]) -> Response:
        style = write(self._model, self._fingerprint, tells_usage=question.wants_usage)
        answering = Answering(self._engine, self.meters, self._limits, question, style)
        if question.stream:
            return EventStream(answering.events())
        answer = await while_there(request.receive, answering.whole)
        if answer is None:
            return Response(status_code=_GONE)
        return Response(answer.model_dump_json(), media_type=_JSON)

    def _about(self) -> ModelInfo:
        return ModelInfo(id=self._model, created=self._created, max_model_len=self._limits.context_length)

    def _check_model(self, name: str, param: str | None = None) -> None:
        if name != self._model:
            message = f"there is no model {name[:200]!r} here, only {self._model!r}"
            raise Refusal(404, "model_not_found", message, param=param)

    def _check_open(self, request: Request) -> None:
        if request.app.state.closing:
            raise Refusal(503, "unavailable", "the server is closing", headers={"Retry-After": "1"})
        self._engine.check()


def _read(kind: type[_Question], body: bytes) -> _Question:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise refusal_of_fields(error, body, kind.model_fields) from None


class _Watch:
    """Middleware: counts what goes out, gives each reply a number (``x-request-id``), and answers for what went wrong
    inside, which is logged with that number.
    """

    def __init__(self, app: ASGIApp, meters: Meters, paths: Mapping[object, str]) -> None:
        self._app, self._meters, self._paths = app, meters, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, number = perf_counter(), 0, secrets.token_hex(8)

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", number.encode())]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:  # noqa: BLE001  # the last one who can
            _log.exception("%s %s failed (%s)", scope["method"], scope["path"], number)
            if not status:
                await refused(refusal_for(error))(scope, receive, watched)
        finally:
            path = self._paths.get(scope.get("endpoint"), "other")  # no path of a client's becomes a label
            self._meters.replied(path, status or _GONE, perf_counter() - began)


async def _refuse(_: Request, error: Exception) -> Response:
    return refused(refusal_for(error))


async def _refuse_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = error.headers or {}
    if error.status_code == 405:
        message = f"{request.url.path[:200]} takes {headers.get('allow', headers.get('Allow', 'other methods'))}"
        return refused(Refusal(405, "method_not_allowed", message, headers=headers))
    message = f"there is nothing at {request.url.path[:200]}; /openapi.json has what there is"
    return refused(Refusal(error.status_code, "not_found", message, headers=headers))


async def _answer_nobody(_: Request, __: Exception) -> Response:
    return Response(status_code=_GONE)
