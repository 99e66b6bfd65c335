"""A web service over one model: whole stories, and stories word by word.

    pip install fastapi uvicorn
    uvicorn examples.service:app
    curl -N localhost:8000/story/stream -H 'content-type: application/json' -d '{"words": ["moon", "boat", "soup"]}'

One engine lives as long as the application. Its model serves all clients at once; who hangs up frees its row; and when
there is too much to do, new clients are told so (503) instead of waiting for ever. SIGTERM lets what is begun finish.
MODEL names another model, or "echo" none.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from asyncgen import Engine, EngineError, EngineSnapshot, Message, PromptTooLong

T = TypeVar("T")


class Wish(BaseModel):
    """What a client wants."""

    words: Annotated[list[str], Field(min_length=1, max_length=10)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=400)] = 200


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The engine's life is the application's."""
    model = os.environ.get("MODEL", "bedtime-tiny")
    settings: dict[str, Any] = {"backend": {"kind": "echo"}} if model == "echo" else {}
    settings["generation"] = {"batch_size": int(os.environ.get("ROWS", "32"))}
    async with Engine(model, max_requests=1000, when_full="raise", **settings) as engine:
        app.state.engine = engine
        yield


app = FastAPI(lifespan=lifespan)


@app.exception_handler(EngineError)
async def unavailable(_: Request, error: EngineError) -> Response:
    """The engine is full, closing, or failed in this answer."""
    return Response(error.message, 503, headers={"Retry-After": "1"})


@app.exception_handler(PromptTooLong)
async def too_long(_: Request, error: PromptTooLong) -> Response:
    """More than the model can hold."""
    return Response(error.message, 422)


@app.exception_handler(ValueError)
async def means_nothing(_: Request, error: ValueError) -> Response:
    """Half of a character, say."""
    return Response(str(error), 422)


@app.post("/story")
async def story(wish: Wish, request: Request) -> Response:
    """A whole story; a client that hangs up cancels it."""
    engine: Engine = app.state.engine
    completion = await while_there(request, engine.generate(conversation(wish), **asking(wish)))
    if completion is None:
        return Response(status_code=499)  # nobody reads it
    return Response(completion.text, media_type="text/plain; charset=utf-8")


@app.post("/story/stream")
async def story_stream(wish: Wish) -> StreamingResponse:
    """The same, as it is written. Starlette cancels the reading when the client hangs up."""
    engine: Engine = app.state.engine
    stream = engine.stream(conversation(wish), **asking(wish))
    first = await anext(stream, "")  # what goes wrong before the first piece still has a status code

    async def pieces() -> AsyncIterator[str]:
        async with stream:
            yield first
            async for piece in stream:
                yield piece

    return StreamingResponse(pieces(), media_type="text/plain; charset=utf-8")


@app.get("/state")
async def state() -> EngineSnapshot:
    """What the engine is doing."""
    engine: Engine = app.state.engine
    return engine.snapshot()


def conversation(wish: Wish) -> list[Message]:
    """What the model is asked."""
    text = f"Write a short bedtime story for a child of three with the words {', '.join(wish.words)}."
    return [{"role": "user", "content": text}]


def asking(wish: Wish) -> dict[str, Any]:
    """How it is asked."""
    chosen = {"max_new_tokens": wish.max_new_tokens}
    return chosen if wish.seed is None else chosen | {"seed": wish.seed}


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """What ``work`` gives; None if the client hangs up before, and then it is cancelled."""
    working, gone = asyncio.create_task(work), asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        gone.cancel()


async def disconnected(request: Request) -> None:
    """Returns when the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
