"""Requests cancelled at any moment: nothing of ours is left, and others' texts are the same to the bit."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncgen import Engine
from asyncgen.engine import Asking
from tests.engine.opened import engine_for, is_idle, question

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

            @settings(max_examples=TRIALS // 8 if kind == "slots" else 30, deadline=None, database=None)
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
    assert trials >= (TRIALS if kind == "slots" else 200)
    assert not [each for each in set(threading.enumerate()) - threads if not each.name.startswith("AnyIO worker")]


async def all_at_once(engine: Engine, chosen: list[Act], expected: dict[int, str]) -> None:
    async with anyio.create_task_group() as tasks:
        for act in chosen:
            tasks.start_soon(perform, engine, act, expected)
    gc.collect()
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
