"""How a reply goes out: as one, or in pieces; either ends with the client that waits for it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, TypeVar

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from asyncgen.server.refusals import Refusal, refusal_for
from asyncgen.tasks import single_cause

__all__ = ["EventStream", "Events", "read_body", "refused", "while_there"]

BODY_SECONDS = 60.0
"""Time that a client may take to send its question."""

Events = AbstractAsyncContextManager[AsyncIterator[Mapping[str, Any]]]
"""Values for JSON, made while they are read."""

_T = TypeVar("_T")


def refused(refusal: Refusal) -> Response:
    """The reply that says so."""
    return Response(refusal.body, refusal.status, refusal.headers, media_type="application/json")


async def read_body(request: Request, limit: int) -> bytes:
    """The request's body. Raises Refusal if it is longer than ``limit`` bytes, which is looked at before it is read,
    or does not come to its end.
    """
    too_large = Refusal(413, "request_too_large", f"the request is larger than {limit} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > limit):
        raise too_large
    body = bytearray()
    with anyio.move_on_after(BODY_SECONDS):
        async for piece in request.stream():
            body += piece
            if len(body) > limit:
                raise too_large
        return bytes(body)
    raise Refusal(408, "request_timeout", f"the request did not come to its end within {BODY_SECONDS:g} s")


async def while_there(receive: Receive, work: Callable[[], Awaitable[_T]]) -> _T | None:
    """What ``work`` gives; None if the client hangs up before, and then it is cancelled."""
    result: _T | None = None
    with single_cause():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_leave_with_client, receive, tasks.cancel_scope)
            result = await work()
            tasks.cancel_scope.cancel()
    return result


class EventStream(Response):
    """Server-sent events. What goes wrong before the first one still has a status; after it, it is an event itself, and
    the stream ends without ``[DONE]``.
    """

    media_type = "text/event-stream"

    def __init__(self, events: Events) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # as ASGI has it
        """Sends all events, for as long as the client is there."""

        async def out(message: Message) -> None:
            try:
                await send(message)
            except OSError as error:  # as some servers say that the client is gone; an engine's TimeoutError is one too
                raise ClientDisconnect from error

        with suppress(ClientDisconnect):
            await while_there(receive, lambda: self._send_all(out))

    async def _send_all(self, send: Send) -> None:
        begun = False
        try:
            async with self._events as events:
                async for event in events:
                    if not begun:
                        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                        await send(start)
                        begun = True
                    await send(_body(_event(event)))
        except ClientDisconnect:
            raise
        except Exception as error:
            if not begun:
                raise
            refusal = refusal_for(error)
            await send(_body(b"data: " + refusal.body + b"\n\n", more=False))
            if refusal.code == "internal_error":
                raise
            return
        await send(_body(b"data: [DONE]\n\n", more=False))


async def _leave_with_client(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _event(value: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def _body(content: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}
