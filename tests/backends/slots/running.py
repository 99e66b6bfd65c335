"""The slots backend at work in its thread, and what a test needs to look at it and to stand in its way."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio

from asyncgen.backends import open_backend
from asyncgen.backends.slots.backend import Slots
from asyncgen.backends.slots.decoders import PlainDecoders
from asyncgen.config import Config
from asyncgen.packing import PromptPool, Window
from asyncgen.records import Completion, Prompt
from tests.backends.helpers import config_for, make_messages, make_prompts

SLOTS = {"kind": "slots", "device": "cpu"}


def slots_for(directory: Path | str, **generation: Any) -> Config:
    return config_for(directory, backend=SLOTS, **({"temperature": 0.9} | generation))


@asynccontextmanager
async def opened(config: Config) -> AsyncIterator[Slots]:
    async with open_backend(config) as backend:
        assert isinstance(backend, Slots)
        yield backend


class Model:
    """Stands before a backend's model; ``ahead`` is asked before each forward pass."""

    def __init__(self, backend: Slots, ahead: Callable[[dict[str, Any]], object]) -> None:
        self._model, self._ahead = backend._loaded.model, ahead
        backend._loaded = replace(backend._loaded, model=self)
        decoders = backend._decoders
        assert isinstance(decoders, PlainDecoders)
        decoders._loaded = backend._loaded

    def __call__(self, **arguments: Any) -> Any:
        self._ahead(arguments)
        return self._model(**arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class Running:
    """A backend at work, and what it has sent."""

    def __init__(self, backend: Slots) -> None:
        self.backend = backend
        self.pool = PromptPool(Window(10_000, goal=None))
        self.found: list[Completion] = []

    def put(self, prompts: Sequence[Prompt]) -> None:
        self.pool.put(prompts)

    async def until(self, count: int) -> list[Completion]:
        with anyio.fail_after(60):
            while len(self.found) < count:  # noqa: ASYNC110  # found by another task
                await anyio.sleep(0.001)
        return self.found


@asynccontextmanager
async def at_work(backend: Slots) -> AsyncIterator[Running]:
    running = Running(backend)
    send, receive = anyio.create_memory_object_stream[tuple[Completion, ...]](10_000)

    async def note() -> None:
        async for group in receive:
            running.found.extend(group)

    async with send, receive, anyio.create_task_group() as tasks:
        tasks.start_soon(backend.run, running.pool, send)
        tasks.start_soon(note)
        yield running
        tasks.cancel_scope.cancel()


def with_pages(backend: Slots, pages: int) -> None:
    """Gives the backend so many pages only."""
    decoders = backend._decoders
    assert isinstance(decoders, PlainDecoders)
    decoders._size = replace(decoders._size, pages=pages)


def make(backend: Slots, count: int, new: int = 12, *, first: int = 0) -> list[Prompt]:
    """Prompts with indices of their own."""
    return [
        replace(prompt, index=first + prompt.index, seed=prompt.seed + first)
        for prompt in make_prompts(backend, make_messages(count), new)
    ]


def said(completions: Sequence[Completion]) -> dict[int, tuple[str, int, str]]:
    return {each.prompt.index: (each.text, each.tokens, each.finish_reason) for each in completions}


async def running_rows(backend: Slots, count: int) -> None:
    """Waits until so many rows run."""
    while backend.snapshot().rows_running < count:  # noqa: ASYNC110  # they run in another thread
        await anyio.sleep(0.001)


def endless(arguments: dict[str, Any]) -> None:
    """Slow enough to be caught at work."""
    del arguments
    threading.Event().wait(0.005)
