"""The static backend when things go wrong: NaN, memory, cancellation, a model that raises, a receiver that left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio
import pytest
import torch
from anyio.streams.memory import MemoryObjectSendStream

from asyncgen.backends import open_backend
from asyncgen.config import Config
from asyncgen.errors import BackendFailed
from asyncgen.packing import PromptPool, Window
from asyncgen.records import Completion
from tests.backends.helpers import (
    Wrapped,
    complete,
    config_for,
    make_messages,
    make_prompts,
)

Forward = Callable[..., Any]
Sender = MemoryObjectSendStream[tuple[Completion, ...]]


async def start(backend: Any, count: int, new_tokens: int) -> tuple[PromptPool, Sender, Any]:
    """A pool of ``count`` prompts, and a stream for their completions."""
    window = Window(count, goal=None)
    pool = PromptPool(window)
    window.plan(count)
    pool.put(make_prompts(backend, make_messages(count), new_tokens))
    window.end()
    send, receive = anyio.create_memory_object_stream[tuple[Completion, ...]](count)
    return pool, send, receive


def test_a_model_that_raises_ends_the_run_with_one_plain_error(llama: Path) -> None:
    def broken(_forward: Forward, **_inputs: Any) -> Any:
        raise IndexError("index out of range in self")

    async def main() -> None:
        async with open_backend(config_for(llama)) as backend:
            Wrapped(backend, broken)
            pool, send, receive = await start(backend, 3, 5)
            with send, receive, pytest.raises(BackendFailed, match="IndexError: index out of range") as caught:
                await backend.run(pool, send)
            assert isinstance(caught.value.__cause__, IndexError)
            assert pool.closed

    anyio.run(main)


def slow_config(llama: Path) -> Config:
    return config_for(llama, max_new_tokens=400, batch_size=2)


def endless(entered: threading.Event, working: list[bool]) -> Callable[..., Any]:
    """A forward that never wants to end its text, and shows that the thread is inside."""

    def forward_without_end(forward: Forward, **inputs: Any) -> Any:
        working.append(True)
        out = forward(**inputs)
        out.logits[:, :, 2] = -torch.inf
        entered.set()
        threading.Event().wait(0.02)
        return out

    return forward_without_end


def test_cancelled_in_mid_generation_it_returns_within_a_step(llama: Path) -> None:
    async def main() -> None:
        entered, steps = threading.Event(), list[bool]()
        async with open_backend(slow_config(llama)) as backend:
            Wrapped(backend, endless(entered, steps))
            pool, send, receive = await start(backend, 2, 400)
            with send, receive:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(backend.run, pool, send)
                    while not entered.is_set():  # noqa: ASYNC110  # set in another thread
                        await anyio.sleep(0.005)
                    snapshot = backend.snapshot()
                    tasks.cancel_scope.cancel()
                    began, before = perf_counter(), len(steps)
                assert perf_counter() - began < 1
                assert len(steps) - before <= 1
                assert snapshot.rows_running == 2
                assert snapshot.busy_seconds > 0
                assert backend._limiter.borrowed_tokens == 0  # type: ignore[attr-defined]  # it is a Static
                done = len(steps)
                await anyio.sleep(0.1)
                assert len(steps) == done, "no thread goes on generating"
                assert pool.closed

    anyio.run(main)


def test_cancelled_by_asyncio_itself_it_leaves_no_thread_working(llama: Path) -> None:
    async def main() -> None:
        entered, steps = threading.Event(), list[bool]()
        async with open_backend(slow_config(llama)) as backend:
            Wrapped(backend, endless(entered, steps))
            pool, send, receive = await start(backend, 2, 400)
            with send, receive:
                task = asyncio.create_task(backend.run(pool, send))
                while not entered.is_set():  # noqa: ASYNC110  # set in another thread
                    await asyncio.sleep(0.005)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                done = len(steps)
                await anyio.sleep(0.1)
                assert len(steps) == done

    anyio.run(main)


def test_cancelled_while_it_waits_for_prompts_it_returns_at_once(llama: Path) -> None:
    async def main() -> None:
        async with open_backend(config_for(llama)) as backend:
            for delay in (0.0, 0.001, 0.01, 0.05):
                pool = PromptPool(Window(8, goal=None))
                send, receive = anyio.create_memory_object_stream[tuple[Completion, ...]](8)
                with send, receive, anyio.fail_after(2):
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(backend.run, pool, send)
                        await anyio.sleep(delay)
                        tasks.cancel_scope.cancel()

    anyio.run(main)


@pytest.mark.parametrize("closed_end", ["receiver", "sender"])
def test_when_nobody_receives_any_more_it_ends_without_an_error(llama: Path, closed_end: str) -> None:
    async def main() -> None:
        async with open_backend(config_for(llama)) as backend:
            pool, send, receive = await start(backend, 3, 5)
            with send, receive:
                (receive if closed_end == "receiver" else send).close()
                with anyio.fail_after(10):
                    await backend.run(pool, send)

    anyio.run(main)


def test_the_event_loop_lives_on_while_a_model_is_loaded_and_used(llama: Path) -> None:
    """Counted, not timed: a loop that is blocked turns not at all, on however slow a machine."""

    async def main() -> None:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await anyio.sleep(0.001)
                turns += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(count)
            async with open_backend(config_for(llama)) as backend:
                loaded = turns
                await complete(backend, make_prompts(backend, make_messages(4), 12))
                used = turns - loaded
            tasks.cancel_scope.cancel()
        assert loaded >= 5
        assert used >= 5

    anyio.run(main)
