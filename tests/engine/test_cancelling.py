"""Requests cancelled at any moment: nothing of ours is left, and others' texts are the same to the bit."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import anyio
import anyio.lowlevel
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncgen import Engine
from asyncgen.backends.shortage import Aside
from asyncgen.backends.slots.worker import Worker
from asyncgen.backends.static import Static
from asyncgen.engine import Asking
from asyncgen.records import Prompt
from tests.engine.opened import HELLO, LONG, engine_for, is_idle, question

Way = Literal["cancel", "timeout", "stream", "close", "native"]
TRIALS = 1000


@dataclass(frozen=True)
class Act:
    """One request, and when and how it is given up: after so many turns of the loop, or never."""

    number: int
    way: Way
    turns: int
    stays: bool


acts = st.builds(
    Act,
    number=st.integers(0, 11),
    way=st.sampled_from(["cancel", "timeout", "stream", "close", "native"]),
    turns=st.integers(0, 40),
    stays=st.booleans(),
)


async def perform(engine: Engine, act: Act, expected: dict[int, str]) -> None:
    messages = question(act.number)
    asked: Asking = {"seed": act.number, "max_new_tokens": 4 + act.number}
    if act.stays:
        if act.way in ("stream", "close"):
            assert "".join([piece async for piece in engine.stream(messages, **asked)]) == expected[act.number]
        else:
            assert (await engine.generate(messages, **asked)).text == expected[act.number]
    elif act.way == "native":
        task = asyncio.create_task(engine.generate(messages, **asked))
        await turns(act.turns)
        task.cancel()
        await asyncio.wait([task])
    elif act.way == "timeout":
        asked["timeout"] = act.turns / 4000
        with suppress(TimeoutError):
            await engine.generate(messages, **asked)
    elif act.way == "cancel":
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: engine.generate(messages, **asked))
            await turns(act.turns)
            tasks.cancel_scope.cancel()
    else:
        stream = engine.stream(messages, **asked)
        with anyio.move_on_after(act.turns / 4000):
            async for _ in stream:
                pass
        if act.way == "close":
            await stream.aclose()


async def turns(count: int) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["slots", "static", "echo"])
def test_a_thousand_requests_given_up_leave_nothing_behind(llama: Path, kind: str) -> None:
    """Each of hypothesis's examples is a dozen requests at once, on one engine that lives through all of them."""
    trials = 0
    threads = set(threading.enumerate())
    with anyio.from_thread.start_blocking_portal() as portal:
        engine = engine_for(llama, kind=kind, rows=4)
        with portal.wrap_async_context_manager(engine):
            expected = portal.call(whole, engine)
            tasks = portal.call(count_tasks)

            @settings(max_examples=TRIALS // 8 if kind == "slots" else 15, deadline=None, database=None)
            @given(st.lists(acts, min_size=8, max_size=16))
            def trial(chosen: list[Act]) -> None:
                nonlocal trials
                trials += len(chosen)
                portal.call(all_at_once, engine, chosen, expected)

            trial()
            gc.collect()
            portal.call(is_idle, engine)
            assert portal.call(count_tasks) == tasks
            assert portal.call(whole, engine) == expected
    assert trials >= (TRIALS if kind == "slots" else 120)
    assert not [each for each in set(threading.enumerate()) - threads if not each.name.startswith("AnyIO worker")]


async def all_at_once(engine: Engine, chosen: list[Act], expected: dict[int, str]) -> None:
    async with anyio.create_task_group() as tasks:
        for act in chosen:
            tasks.start_soon(perform, engine, act, expected)
    gc.collect(0)  # streams that were forgotten; all of it costs more than the trial
    await is_idle(engine)


async def whole(engine: Engine) -> dict[int, str]:
    """What each question is answered when nobody is cancelled."""
    return {
        number: (await engine.generate(question(number), seed=number, max_new_tokens=4 + number)).text
        for number in range(12)
    }


async def count_tasks() -> int:
    """When nothing is done: a thread that waits for prompts has a task here that waits for it."""
    await anyio.sleep(0.1)
    return len(asyncio.all_tasks())


def test_the_caller_of_a_cancelled_caller_is_not_told_too_much(llama: Path) -> None:
    """Cancelling one of two who wait for the same engine tells the other nothing."""

    async def main() -> None:
        async with engine_for(llama, rows=1) as engine:
            rng = random.Random(1)
            for _ in range(20):
                one, other = (asyncio.create_task(engine.generate(question(n), seed=n)) for n in range(2))
                await turns(rng.randrange(30))
                one.cancel()
                assert (await other).tokens
                with pytest.raises(asyncio.CancelledError):
                    await one

    anyio.run(main)


def test_in_a_batch_of_static_a_cancelled_row_is_over_before_the_others_are(llama: Path) -> None:
    async def main() -> None:
        async with engine_for(llama, kind="static", rows=2, max_requests=2) as engine:
            long = asyncio.create_task(engine.generate(HELLO, seed=LONG, max_new_tokens=450))
            other = asyncio.create_task(engine.generate(HELLO, seed=LONG, max_new_tokens=450))
            short = ""
            while engine.snapshot().rows_running < 2:  # noqa: ASYNC110  # made in another thread
                await asyncio.sleep(0.001)
            other.cancel()
            while engine.snapshot().requests > 1:  # noqa: ASYNC110  # made in another thread
                await asyncio.sleep(0.001)
            assert not long.done(), "its neighbour goes on"
            assert engine.snapshot().cancelled == 1
            short += (await long).text
            assert short

    anyio.run(main)


def test_what_static_has_set_aside_for_lack_of_memory_can_be_cancelled(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("simulated")

    async def main() -> None:
        monkeypatch.setattr(Static, "_generate", fails)
        async with engine_for(llama, kind="static") as engine:
            with pytest.raises(TimeoutError):
                await engine.generate(HELLO, timeout=0.2)
            await is_idle(engine)
            assert engine.snapshot().cancelled == 1

    anyio.run(main)


def test_a_prompt_cancelled_while_those_that_wait_are_looked_through_is_not_lost() -> None:
    """The thread looks at what is cancelled while the event loop adds to it."""

    one, other = Prompt(0, ()), Prompt(1, ())
    dropped: Any = SimpleNamespace(
        _waiting=deque([one, other]), _aside=Aside(), _done=[], _decoder=SimpleNamespace(seats=[])
    )
    live: set[int] = {id(one)}
    exchange = SimpleNamespace(cancelled=live)
    cancelled = frozenset(exchange.cancelled)
    live.add(id(other))
    Worker._drop(dropped, cancelled)
    assert list(dropped._waiting) == [other]
    assert [each.prompt for each in dropped._done] == [one]
