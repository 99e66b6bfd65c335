"""Engines over tiny models, and what must be left of them when nobody uses them any more."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from asyncgen import Engine
from asyncgen.backends.slots.backend import Slots
from asyncgen.config import Config
from asyncgen.engine.request import Request
from asyncgen.engine.streams import TextStream
from asyncgen.records import Message
from tests.backends.helpers import WORDS, config_for

HELLO: list[Message] = [{"role": "user", "content": "the moon and a boat"}]
LONG = 3
"""A seed with which the answer to HELLO does not end before 450 tokens."""
ECHO = {"kind": "echo"}


def engine_for(directory: Path | str, *, kind: str = "slots", rows: int = 4, **options: Any) -> Engine:
    """With four rows, 24 new tokens and a temperature of 0.9 unless told otherwise."""
    generation = {"batch_size": rows, "max_new_tokens": 24, "temperature": 0.9} | options.pop("generation", {})
    backend = options.pop("backend", {})
    if kind == "echo":
        config = Config.model_validate(
            {"backend": ECHO | backend, "generation": generation, "validation": {"enabled": False}}
        )
    else:
        config = config_for(directory, backend={"kind": kind} | backend, **generation)
    return Engine(config.model_copy(update=options.pop("config", {})), **options)


def before_each_pass(engine: Engine, function: Callable[[], object]) -> None:
    """Has ``function`` called before each forward pass of the engine's model, whether its thread has begun or not."""
    assert engine._core is not None
    backend: Any = engine._core.backend
    model = backend._loaded.model
    forward = model.forward

    def watched(*given: Any, **named: Any) -> Any:
        function()
        return forward(*given, **named)

    model.forward = watched


def question(number: int, words: int = 3) -> list[Message]:
    return [Message(role="user", content=" ".join(WORDS[(number + k) % len(WORDS)] for k in range(words)))]


@asynccontextmanager
async def nothing_left(engine: Engine) -> AsyncIterator[Engine]:
    """At the end nothing waits in the engine, and when it is closed neither its tasks nor its requests are there."""
    before = asyncio.all_tasks()
    async with engine:
        yield engine
        await is_idle(engine)
    assert asyncio.all_tasks() == before
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) in (Request, TextStream)]


async def is_idle(engine: Engine) -> None:
    """Waits until nothing is done, and looks whether anything was forgotten."""
    core = engine._core
    assert core is not None
    with anyio.fail_after(30):
        while (seen := engine.snapshot()).rows_running or seen.requests or core._fresh:  # noqa: ASYNC110  # it works in another thread
            await anyio.sleep(0.002)
    assert (seen.waiting, seen.at_the_gate, core.gate.inside) == (0, 0, 0)
    assert not core.desk._holders
    assert not core.desk._waiting
    if isinstance(core.backend, Slots):
        exchange = core.backend._exchange
        assert exchange is not None
        with anyio.fail_after(5):
            while exchange._held or exchange.cancelled:  # noqa: ASYNC110  # told by another thread
                await anyio.sleep(0.002)
