"""The slots backend in its thread: what it does about failures, cancellation and ends, and that nobody is lost."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from transformers import AutoModelForCausalLM

from asyncgen.config import Config
from asyncgen.errors import BackendFailed
from asyncgen.packing import PromptPool, Window
from asyncgen.records import Completion, Message, Sampling
from tests.backends.helpers import (
    complete,
    make_prompts,
)
from tests.backends.slots.running import (
    Model,
    at_work,
    endless,
    make,
    opened,
    running_rows,
    said,
    slots_for,
    with_pages,
)
from tests.backends.test_static import sample_alone

pytestmark = pytest.mark.usefixtures("no_thread_of_ours_is_left")


def test_prompts_may_be_sampled_each_in_its_own_way(llama: Path) -> None:
    own = [
        None,
        Sampling(0.0, logprobs=True),
        Sampling(1.5, top_k=20, repetition_penalty=1.4),
        Sampling(0.8, top_p=0.9, logprobs=True),
        Sampling(0.0, repetition_penalty=1.3, logprobs=True),
        Sampling(1.0, min_p=0.1),
    ]
    plain: Any = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)

    async def main() -> None:
        async with opened(slots_for(llama)) as backend:
            prompts = [replace(prompt, sampling=way) for prompt, way in zip(make(backend, len(own)), own, strict=True)]
            for completion, way in zip(await complete(backend, prompts), own, strict=True):
                used = way or backend._sampling
                tokens, logprobs = sample_alone(plain, completion.prompt, used, completion.tokens)
                assert completion.text == backend._chat.decode(tokens).strip()
                assert completion.logprobs == (pytest.approx(logprobs, abs=1e-4) if used.logprobs else ())

    anyio.run(main)


def test_cancelling_one_frees_its_slot_and_disturbs_nobody(llama: Path) -> None:
    async def main() -> None:
        async with opened(slots_for(llama, batch_size=6)) as backend:
            Model(backend, endless)
            prompts = make(backend, 5, 60)
            expected = said(await complete(backend, prompts))
            long = max(expected, key=lambda index: expected[index][1])
            async with at_work(backend) as running:
                running.put(prompts)
                await running_rows(backend, 5)
                backend.cancel(prompts[long])
                found = said(await running.until(5))
                assert backend._exchange is not None
                assert not backend._exchange.cancelled
                assert not backend._exchange._held
            text, tokens, reason = found.pop(long)
            assert reason == "cancelled"
            assert tokens < expected[long][1]
            assert expected.pop(long)[0].startswith(text)
            assert found == expected

    anyio.run(main)


def test_cancelling_what_waits_or_is_unknown_or_is_done(llama: Path) -> None:
    async def main() -> None:
        async with opened(slots_for(llama, batch_size=2)) as backend:
            Model(backend, endless)
            prompts = make(backend, 12, 40)
            backend.cancel(prompts[3])  # nothing runs at all
            expected = said(await complete(backend, prompts))
            async with at_work(backend) as running:
                running.put(prompts)
                await running_rows(backend, 2)
                inside = len(running.pool)
                backend.cancel(replace(prompts[0], seed=1))  # another one, of the same index
                for prompt in prompts[-3:]:  # in the pool, where a backend cannot know it
                    backend.cancel(prompt)
                found = said(await running.until(12))
                for prompt in prompts:
                    backend.cancel(prompt)
                running.put(prompts[:1])  # the next attempt of an index that was cancelled when it was done
                again = (await running.until(13))[12]
                assert backend._exchange is not None
                assert not backend._exchange.cancelled
            assert 0 < inside < 12
            assert said([again])[0] == expected[0]
            assert found == expected

    anyio.run(main)


def test_a_prompt_that_needs_more_pages_than_there_are_is_refused(llama: Path) -> None:
    async def main() -> None:
        async with opened(slots_for(llama, batch_size=2)) as backend:
            with_pages(backend, 4)
            prompts = make(backend, 4)
            prompts[1:1] = [replace(make(backend, 1, 300)[0], index=9)]
            async with at_work(backend) as running:
                running.put(prompts)
                found = said(await running.until(5))
            assert found.pop(9) == ("", 0, "refused")
            assert "error" not in {each[2] for each in found.values()}

    anyio.run(main)


@pytest.mark.parametrize("after", [0, 3])
def test_a_model_that_raises_ends_the_run_with_one_plain_error(llama: Path, after: int) -> None:
    calls = 0

    def fails(_: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise IndexError("index out of range in self")

    async def main() -> None:
        async with opened(slots_for(llama)) as backend:
            Model(backend, fails)
            pool = PromptPool(Window(100, goal=None))
            pool.put(make(backend, 6))
            send, receive = anyio.create_memory_object_stream[tuple[Completion, ...]](100)
            expected = pytest.raises(BackendFailed, match="IndexError: index out of range")
            with send, receive, anyio.fail_after(30), expected as caught:
                await backend.run(pool, send)
            assert isinstance(caught.value.__cause__, IndexError)
            assert pool.closed
            assert backend.snapshot().rows_running == 0

    anyio.run(main)


@pytest.mark.parametrize("native", [False, True])
def test_cancelled_at_any_moment_it_returns_and_leaves_no_thread(llama: Path, native: bool) -> None:
    async def main() -> None:
        calls: list[int] = []

        def count(arguments: dict[str, Any]) -> None:
            calls.append(1)
            endless(arguments)

        async with opened(slots_for(llama)) as backend:
            Model(backend, count)
            for delay in (0.0, 0.0, 0.001, 0.003, 0.01, 0.02, 0.04):
                pool = PromptPool(Window(100, goal=None))
                pool.put(make(backend, 6, 300))
                send, receive = anyio.create_memory_object_stream[tuple[Completion, ...]](100)
                with send, receive, anyio.fail_after(30):
                    if native:
                        task = asyncio.create_task(backend.run(pool, send))
                        await asyncio.sleep(delay)
                        before = len(calls)
                        task.cancel()
                        with pytest.raises(asyncio.CancelledError):
                            await task
                    else:
                        async with anyio.create_task_group() as tasks:
                            tasks.start_soon(backend.run, pool, send)
                            await anyio.sleep(delay)
                            before = len(calls)
                            tasks.cancel_scope.cancel()
                assert len(calls) <= before + 8  # a trial of threads, a prompt, a step
                done = len(calls)
                assert backend._limiter.borrowed_tokens == 0
                await anyio.sleep(0.02)
                assert len(calls) == done
                assert backend._exchange is None

    anyio.run(main)


def test_a_loop_that_is_blocked_stops_no_row(llama: Path) -> None:
    async def main() -> None:
        async with opened(slots_for(llama)) as backend:
            Model(backend, endless)
            async with at_work(backend) as running:
                running.put(make(backend, 4, 200))
                await running_rows(backend, 4)
                before = backend.snapshot().generated
                time.sleep(0.3)  # noqa: ASYNC251  # blocking is what is tested
                assert backend.snapshot().generated > before + 4

    anyio.run(main)


def test_a_pool_that_is_closed_gets_what_was_taken(llama: Path) -> None:
    async def main() -> None:
        async with opened(slots_for(llama)) as backend:
            Model(backend, endless)
            prompts = make(backend, 4, 30)
            expected = said(await complete(backend, prompts))
            for _ in range(2):  # and once more on the same backend
                pool = PromptPool(Window(100, goal=None))
                send, receive = anyio.create_memory_object_stream[tuple[Completion, ...]](100)
                with send, receive, anyio.fail_after(30):
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(backend.run, pool, send)
                        await anyio.sleep(0.01)
                        pool.put(prompts)
                        await running_rows(backend, 4)
                        pool.close()
                    found: list[Completion] = []
                    while len(found) < 4:
                        found.extend(receive.receive_nowait())
                assert said(found) == expected
            idle = PromptPool(Window(100, goal=None))
            send, receive = anyio.create_memory_object_stream[tuple[Completion, ...]](100)
            with send, receive, anyio.fail_after(30):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(backend.run, idle, send)
                    await anyio.sleep(0.02)
                    idle.close()

    anyio.run(main)


@pytest.mark.parametrize("end", ["receiver", "sender"])
def test_when_nobody_receives_any_more_it_ends_without_an_error(llama: Path, end: str) -> None:
    async def main() -> None:
        async with opened(slots_for(llama)) as backend:
            pool = PromptPool(Window(100, goal=None))
            prompts = make(backend, 3)
            pool.put(prompts)
            send, receive = anyio.create_memory_object_stream[tuple[Completion, ...]](100)
            with send, receive, anyio.fail_after(30):
                (receive if end == "receiver" else send).close()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(backend.run, pool, send)
                    while len(pool):  # noqa: ASYNC110  # taken by another thread
                        await anyio.sleep(0.001)
                    pool.close()

    anyio.run(main)


def test_short_answers_and_long_prompts(llama: Path) -> None:
    """One token, a prompt at the limit of the context, a stop string: each beside the others."""

    async def main() -> None:
        async with opened(slots_for(llama, temperature=0.0)) as backend:
            overhead = len(backend.prepare([Message(role="user", content="x")], 1).token_ids) - 1
            longest = [Message(role="user", content="x" * (512 - 40 - overhead))]
            prompts = [
                *make(backend, 2, 1),
                replace(make_prompts(backend, [longest], 40)[0], index=2),
                *make(backend, 2, 40, first=3),
            ]
            assert prompts[2].prepared.length == 512 - 40
            found = await complete(backend, prompts)
            assert [each.finish_reason for each in found if each.tokens == each.prompt.max_new_tokens] == [
                "length"
            ] * sum(each.tokens == each.prompt.max_new_tokens for each in found)
            assert all(each.tokens <= 1 for each in found[:2])
            alone: dict[int, tuple[str, int, str]] = {}
            for prompt in prompts:
                alone |= said(await complete(backend, [prompt]))
            assert said(found) == alone

    anyio.run(main)


def test_a_stop_string_ends_its_row_only(llama: Path) -> None:
    async def go(config: Config) -> list[Completion]:
        async with opened(config) as backend:
            return await complete(backend, make(backend, 4, 20))

    plain = anyio.run(go, slots_for(llama))
    stop = plain[2].text[5:8]
    for before, after in zip(plain, anyio.run(go, slots_for(llama, stop=[stop, "never seen"])), strict=True):
        cut = before.text.find(stop)
        assert after.text == (before.text if cut < 0 else before.text[:cut].strip())
        assert after.finish_reason == ("stop" if cut >= 0 else before.finish_reason)
