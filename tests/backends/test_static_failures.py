"""The static backend when things go wrong: NaN, memory, cancellation, a model that raises, a receiver that left."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio
import pytest
import torch

from asyncgen.backends import Completions, open_backend
from asyncgen.backends.static import Static
from asyncgen.config import Config
from asyncgen.errors import BackendFailed
from asyncgen.packing import PromptPool, Window
from asyncgen.records import Completion, Message
from tests.backends.helpers import complete, config_for, make_messages, make_model, make_prompts, make_tokenizer, run

Forward = Callable[..., Any]


class Wrapped:
    """Puts ``around(forward, **inputs)`` in the place of a loaded model's forward."""

    def __init__(self, backend: object, around: Callable[..., Any]) -> None:
        assert isinstance(backend, Static)
        model = backend._loaded.model
        forward = model.forward
        model.forward = lambda **inputs: around(forward, **inputs)


async def start(backend: Any, count: int, new_tokens: int) -> tuple[PromptPool, Completions, Any]:
    """A pool of ``count`` prompts, and a stream for their completions."""
    window = Window(count, goal=None)
    pool = PromptPool(window)
    window.plan(count)
    pool.put(make_prompts(backend, make_messages(count), new_tokens))
    window.end()
    send, receive = anyio.create_memory_object_stream[tuple[Completion, ...]](count)
    return pool, send, receive


def test_a_row_with_nan_logits_fails_alone(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    poison = tokenizer.convert_tokens_to_ids("Q")
    assert isinstance(poison, int)
    # Tied to the output, the poisoned embedding would make that token's logit NaN in every row.
    sick = make_model(tmp_path / "sick", nan_token=poison, tie_word_embeddings=False)
    well = make_model(tmp_path / "well", tie_word_embeddings=False)
    conversations = make_messages(4)
    expected = run(config_for(well, temperature=0.7), conversations)
    conversations[2] = ({"role": "user", "content": "Q"},)
    found = run(config_for(sick, temperature=0.7), conversations)
    assert found[2].finish_reason == "error"
    assert found[2].error.startswith("logits not finite: ")
    assert not found[2].retryable
    for i in (0, 1, 3):
        assert (found[i].text, found[i].finish_reason) == (expected[i].text, expected[i].finish_reason)


def test_a_row_whose_logits_turn_nan_later_may_be_tried_again(llama: Path) -> None:
    steps = 0

    def poison(forward: Forward, **inputs: Any) -> Any:
        nonlocal steps
        out = forward(**inputs)
        if steps == 3:
            out.logits[0, -1, 5] = torch.inf
        steps += 1
        return out

    async def main() -> list[Completion]:
        async with open_backend(config_for(llama)) as backend:
            Wrapped(backend, poison)
            return await complete(backend, make_prompts(backend, make_messages(1), 12))

    [found] = anyio.run(main)
    assert (found.finish_reason, found.retryable, found.tokens) == ("error", True, 3)


def fails_above(limit: int, seen: list[int]) -> Callable[..., Any]:
    def forward_with_limit(forward: Forward, **inputs: Any) -> Any:
        rows = inputs["input_ids"].shape[0]
        seen.append(rows)
        if rows > limit:
            raise torch.OutOfMemoryError("simulated: not enough memory for so many rows")
        return forward(**inputs)

    return forward_with_limit


@pytest.mark.parametrize("limit", [1, 3, 4])
def test_out_of_memory_halves_the_batch_and_is_remembered(llama: Path, limit: int) -> None:
    conversations = [(Message(role="user", content=f"story {i:02d}"),) for i in range(16)]
    config = config_for(llama, batch_size=8, max_new_tokens=4)
    expected = run(config, conversations)
    seen: list[int] = []

    async def main() -> list[Completion]:
        async with open_backend(config) as backend:
            Wrapped(backend, fails_above(limit, seen))
            found = await complete(backend, make_prompts(backend, conversations, 4))
            assert 1 <= backend.snapshot().out_of_memory <= 3, "at most log2(batch) for a limit that does not move"
            return found

    found = anyio.run(main)
    assert [c.text for c in found] == [c.text for c in expected]
    assert max(seen) == 8
    assert seen.count(8) == 1, "the run learnt from the first time"


def test_what_did_not_fit_is_freed_before_it_is_tried_again(llama: Path) -> None:
    left: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def fails_once(forward: Forward, **inputs: Any) -> Any:
        if not left:
            big = torch.zeros(1000)
            left.append(weakref.ref(big))
            raise torch.OutOfMemoryError("simulated")
        alive.append(left[0]() is not None)
        return forward(**inputs)

    async def main() -> None:
        async with open_backend(config_for(llama)) as backend:
            Wrapped(backend, fails_once)
            await complete(backend, make_prompts(backend, make_messages(4), 3))

    gc.disable()  # counting references has to do
    try:
        anyio.run(main)
    finally:
        gc.enable()
    assert alive[0] is False


def test_out_of_memory_for_one_prompt_alone_rejects_only_that(llama: Path) -> None:
    conversations = make_messages(5)
    conversations[3] = ({"role": "user", "content": "long " * 60},)

    def short_only(forward: Forward, **inputs: Any) -> Any:
        if inputs["attention_mask"].shape[1] > 200:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return forward(**inputs)

    async def main() -> list[Completion]:
        async with open_backend(config_for(llama)) as backend:
            Wrapped(backend, short_only)
            return await complete(backend, make_prompts(backend, conversations, 12))

    found = anyio.run(main)
    assert [c.finish_reason == "error" for c in found] == [False, False, False, True, False]
    assert found[3].error.startswith("out of memory: ")
    assert not found[3].retryable


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
