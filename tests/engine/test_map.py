"""``Engine.map``: ordered or as they come, no faster than they are read, and nothing left of what is not."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncgen.errors import EngineClosed, EngineFull
from asyncgen.seeds import sampling_seed
from tests.engine.opened import HELLO, engine_for, is_idle, nothing_left, question

pytestmark = pytest.mark.usefixtures("no_thread_of_ours_is_left")


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 30),
    ahead=st.one_of(st.none(), st.integers(1, 9)),
    rows=st.integers(1, 6),
    ordered=st.booleans(),
    asynchronous=st.booleans(),
)
def test_every_prompt_gets_its_answer_once(
    count: int, ahead: int | None, rows: int, ordered: bool, asynchronous: bool
) -> None:
    taken = read = most = 0

    def prompts() -> Iterator[str]:
        nonlocal taken, most
        for number in range(count):
            taken += 1
            most = max(most, taken - read)
            yield f"prompt {number}"

    async def one_by_one() -> AsyncIterator[str]:
        for prompt in prompts():
            await anyio.lowlevel.checkpoint()
            yield prompt

    async def main() -> list[tuple[int, object]]:
        nonlocal read
        found: list[tuple[int, object]] = []
        async with engine_for("", kind="echo", rows=rows) as engine:
            source: Any = one_by_one() if asynchronous else prompts()
            async for completion in engine.map(source, ordered=ordered, ahead=ahead):
                read += 1
                found.append((completion.prompt.index, completion.prompt.given))
            await is_idle(engine)
        return found

    found = anyio.run(main)
    expected = [(number, f"prompt {number}") for number in range(count)]
    assert (found if ordered else sorted(found)) == expected
    assert most <= (2 * rows if ahead is None else ahead) + 1  # one is taken while the answer to another is handed over


def test_as_they_come_the_short_ones_do_not_wait(llama: Path) -> None:
    async def main() -> None:
        async with nothing_left(engine_for(llama, rows=4)) as engine:
            long = engine.map([HELLO], max_new_tokens=300, top_k=2, seed=1)
            async with long:
                short = [each async for each in engine.map([question(n) for n in range(6)], max_new_tokens=3)]
                assert [each.prompt.index for each in short] == list(range(6))

    anyio.run(main)


@pytest.mark.parametrize("kind", ["slots", "static"])
def test_seeds_follow_from_the_place_and_answers_from_the_seeds(llama: Path, kind: str) -> None:
    async def main() -> None:
        async with nothing_left(engine_for(llama, kind=kind)) as engine:
            questions = [question(n) for n in range(12)]
            ordered = [each async for each in engine.map(questions, seed=9)]
            any_order = [each async for each in engine.map(questions, seed=9, ordered=False, ahead=3)]
            assert [each.text for each in sorted(any_order, key=lambda each: each.prompt.index)] == [
                each.text for each in ordered
            ]
            for place in (0, 7):
                alone = await engine.generate(questions[place], seed=sampling_seed(9, place, 1))
                assert alone.text == ordered[place].text

    anyio.run(main)


def test_what_cannot_be_answered_is_a_value_and_does_not_end_the_rest(llama: Path) -> None:
    async def main() -> None:
        async with nothing_left(engine_for(llama)) as engine:
            asked: list[Any] = [question(0), question(0, 300), [5, 999], question(1)]
            found = [each async for each in engine.map(asked, max_new_tokens=4)]
            assert [each.finish_reason in ("stop", "length") for each in found] == [True, False, False, True]
            assert [each.finish_reason for each in found][1:3] == ["refused", "refused"]
            assert "prompt too long" in found[1].error
            assert "999 is no token" in found[2].error
            late = [each async for each in engine.map(asked[:1], max_new_tokens=400, stop=["\0"], timeout=0.02)]
            assert (late[0].finish_reason, late[0].error) == ("error", "TimeoutError: no answer within 0.02 s")

    anyio.run(main)


@pytest.mark.parametrize("broken", ["raises", "no prompt", "cancelled", "exits"])
def test_prompts_that_fail_give_what_was_asked_before_and_then_the_failure(broken: str) -> None:
    async def prompts() -> AsyncIterator[Any]:
        for prompt in ("one", "two"):
            yield prompt
        if broken == "raises":
            raise OSError("the disk is gone")
        if broken == "exits":
            sys.exit("enough")
        if broken == "cancelled":  # something that they wait for is, and neither they nor whoever reads
            task = asyncio.create_task(asyncio.sleep(60))
            task.cancel()
            await task
        yield 5.0

    expected: dict[str, tuple[type[BaseException], str]] = {
        "raises": (OSError, "disk is gone"),
        "no prompt": (TypeError, "prompt: found float"),
        "cancelled": (RuntimeError, "the prompts raised CancelledError"),
        "exits": (SystemExit, "enough"),
    }

    async def main() -> None:
        async with nothing_left(engine_for("", kind="echo")) as engine:
            found = []
            kind, message = expected[broken]
            with pytest.raises(kind, match=message):
                async for each in engine.map(prompts()):
                    found.append(each.prompt.given)  # noqa: PERF401  # what came before the failure counts
            assert found == ["one", "two"]
            assert (await engine.generate("others go on")).text

    anyio.run(main)


def test_what_was_begun_at_the_moment_of_leaving_is_ended_too(llama: Path) -> None:
    """Neither the prompts nor the room for one is waited for any more, and the feed has not noticed yet."""

    async def main() -> None:
        for turns in range(5):
            go = anyio.Event()

            async def prompts(go: anyio.Event) -> AsyncIterator[Any]:
                yield question(0)
                await go.wait()
                yield HELLO

            async with nothing_left(engine_for(llama)) as engine:
                async with engine.map(prompts(go), max_new_tokens=200, seed=1) as answers:
                    await anext(answers)
                    go.set()
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                await is_idle(engine)
                assert engine.snapshot().finished == 1, turns
                del answers

    anyio.run(main)


def test_a_timeout_counts_the_waiting_at_the_gate() -> None:
    async def main() -> None:
        engine = engine_for("", kind="echo", rows=1, max_requests=1, backend={"seconds_per_batch": 0.6})
        async with nothing_left(engine), anyio.create_task_group() as tasks:
            tasks.start_soon(engine.generate, "first")
            await anyio.sleep(0.01)
            began = anyio.current_time()
            (late,) = [each async for each in engine.map(["second"], timeout=0.05)]
            assert (late.finish_reason, late.error) == ("error", "TimeoutError: no answer within 0.05 s")
            assert anyio.current_time() - began < 0.5
            with pytest.raises(TypeError, match="when_full: not for map"):
                engine.map(["x"], when_full="raise")
            with pytest.raises(TypeError, match="prompts: found str, expected several prompts"):
                engine.map("hello")

    anyio.run(main)


def test_a_timeout_lets_nobody_in_while_the_model_still_has_the_row() -> None:
    """Of a batch that nobody can leave, say: as many as may be in are in."""

    async def main() -> None:
        engine = engine_for("", kind="echo", rows=1, max_requests=1, backend={"seconds_per_batch": 1.0})
        async with nothing_left(engine):
            (late,) = [each async for each in engine.map(["first"], timeout=0.1)]
            assert late.error == "TimeoutError: no answer within 0.1 s"
            assert engine.snapshot().requests == 1
            with pytest.raises(EngineFull):
                await engine.generate("second", when_full="raise")
            assert (await engine.generate("third")).text
            snapshot = engine.snapshot()
            assert (snapshot.finished, snapshot.cancelled, snapshot.failed) == (1, 1, 0)

    anyio.run(main)


def test_an_engine_is_not_closed_by_the_prompts_that_it_answers() -> None:
    async def main() -> None:
        async with engine_for("", kind="echo") as engine:

            async def prompts() -> AsyncIterator[str]:
                try:
                    yield "one"
                finally:
                    await engine.aclose()

            with pytest.raises(RuntimeError, match="cannot be closed by the prompts"):
                async for _ in engine.map(prompts()):
                    pass

    anyio.run(main)


@pytest.mark.parametrize("how", ["break", "block", "forget", "cancel"])
def test_left_early_nothing_goes_on(llama: Path, how: str) -> None:
    def endless() -> Iterator[Any]:
        number = 0
        while True:
            number += 1
            yield question(number)

    async def main() -> None:
        async with nothing_left(engine_for(llama)) as engine:
            answers = engine.map(endless(), max_new_tokens=30, stop=["\0"])
            if how == "block":
                async with answers:
                    await anext(answers)
            elif how == "cancel":
                with anyio.move_on_after(0.1):
                    async for _ in answers:
                        pass
            else:
                async for _ in answers:
                    break
            if how in ("block", "cancel"):
                assert [each async for each in answers] == []
            del answers
            gc.collect()
            await is_idle(engine)

    anyio.run(main)


def test_an_engine_that_closes_tells_whoever_reads_and_whoever_feeds() -> None:
    async def main() -> None:
        engine = engine_for("", kind="echo", backend={"seconds_per_batch": 0.01})
        fed = anyio.Event()

        async def feed() -> AsyncIterator[str]:
            yield "one"
            try:
                await anyio.sleep_forever()
            finally:
                fed.set()

        await engine.start()
        answers = engine.map(feed())
        assert (await anext(answers)).text
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.aclose)
            with pytest.raises(EngineClosed):
                await anext(answers)
        assert fed.is_set()

    anyio.run(main)


@pytest.mark.parametrize("kind", ["async", "plain"])
def test_prompts_that_are_left_early_are_closed(kind: str) -> None:
    closed: list[str] = []

    def plain() -> Iterator[str]:
        try:
            while True:
                yield "one"
        finally:
            closed.append("plain")

    async def slow() -> AsyncIterator[str]:
        try:
            while True:
                yield "one"
        finally:
            await anyio.sleep(0.01)
            closed.append("async")

    async def main() -> None:
        async with engine_for("", kind="echo") as engine:
            given: Any = plain() if kind == "plain" else slow()
            async with engine.map(given) as answers:
                assert (await anext(answers)).text
            with anyio.fail_after(5):
                while not closed:  # noqa: ASYNC110  # in a task of the engine's
                    await anyio.sleep(0.001)
        assert closed == [kind]

    anyio.run(main)


def test_two_may_read_one_map_and_each_answer_is_read_once() -> None:
    async def main() -> None:
        found: list[int] = []

        async def read(answers: Any) -> None:
            async for each in answers:
                found.append(each.prompt.index)  # noqa: PERF401  # others add to it too

        async with nothing_left(engine_for("", kind="echo")) as engine:
            answers = engine.map([f"p {n}" for n in range(50)])
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(read, answers)
        assert sorted(found) == list(range(50))

    anyio.run(main)
