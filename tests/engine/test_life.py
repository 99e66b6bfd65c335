"""Opening and closing an engine: by whichever task, at whatever moment, whoever waits; and nothing is left."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import anyio
import pytest
from blockbuster import blockbuster_ctx

from asyncgen import Engine
from asyncgen.errors import EngineClosed, ModelError
from tests.engine.opened import HELLO, LONG, before_each_pass, engine_for, question

pytestmark = pytest.mark.usefixtures("no_thread_of_ours_is_left")


def test_opened_in_one_task_and_closed_in_another(llama: Path) -> None:
    async def main() -> None:
        engine = engine_for(llama)
        before = asyncio.all_tasks()
        assert await asyncio.create_task(engine.start()) is engine
        assert (await asyncio.create_task(engine.generate(HELLO))).tokens
        await asyncio.create_task(engine.aclose())
        assert asyncio.all_tasks() == before

    asyncio.run(main())


def test_a_model_that_is_not_there_is_told_by_start(tmp_path: Path) -> None:
    async def main() -> None:
        engine = Engine(str(tmp_path / "nothing"))
        with pytest.raises(ModelError, match="nothing"):
            await engine.start()
        with pytest.raises(EngineClosed):
            await engine.generate("x")
        await engine.aclose()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 200])
def test_closed_by_another_task_while_it_opens(llama: Path, turns: int) -> None:
    async def main() -> None:
        engine = engine_for(llama)
        opening = asyncio.create_task(engine.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        await engine.aclose()
        if not turns:
            engine = await opening  # it had not begun
            await engine.aclose()
        else:
            with pytest.raises(EngineClosed):
                await asyncio.wait_for(opening, 20)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


@pytest.mark.parametrize("native", [True, False])
def test_cancelled_while_it_loads_it_ends_with_the_loading(llama: Path, native: bool) -> None:
    async def main() -> None:
        before = asyncio.all_tasks()
        engine = engine_for(llama)
        if native:
            task = asyncio.create_task(engine.start())
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            with anyio.move_on_after(0.01):
                await engine.start()
        assert asyncio.all_tasks() == before
        with pytest.raises(EngineClosed):
            await engine.generate(HELLO)

    asyncio.run(main())


def test_closing_finishes_what_is_in_and_lets_nobody_in(llama: Path) -> None:
    async def main() -> None:
        engine = await engine_for(llama, rows=2, max_requests=4).start()
        asked = [asyncio.create_task(engine.generate(question(n), seed=n)) for n in range(6)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(engine.aclose())
        await asyncio.sleep(0)
        with pytest.raises(EngineClosed):
            await engine.generate(HELLO)
        done = await asyncio.gather(*asked, return_exceptions=True)
        await closing
        assert [isinstance(each, EngineClosed) for each in done] == [False] * 4 + [True] * 2
        assert engine.snapshot().finished == 4

    asyncio.run(main())


@pytest.mark.parametrize("how", ["no drain", "too slow", "error"])
def test_closing_at_once_tells_whoever_waits(llama: Path, how: str) -> None:
    async def main() -> None:
        changes = {"drain_timeout": 0.05} if how == "too slow" else {}
        engine = engine_for(llama, rows=1, config=changes)
        texts: list[str] = []

        async def read() -> None:
            async for piece in engine.stream(HELLO, seed=LONG, max_new_tokens=450):
                texts.append(piece)  # noqa: PERF401  # what came before the end counts

        with pytest.raises(ZeroDivisionError) if how == "error" else anyio.CancelScope():
            async with engine:
                waiting = [asyncio.create_task(read()), asyncio.create_task(engine.generate(HELLO))]
                while not texts:  # noqa: ASYNC110  # made in another thread
                    await asyncio.sleep(0.001)
                if how == "no drain":
                    await engine.aclose(drain=False)
                elif how == "error":
                    raise ZeroDivisionError
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(each, EngineClosed) for each in done)
        assert texts

    asyncio.run(main())


def test_closing_may_be_cancelled_and_still_leaves_nothing(llama: Path) -> None:
    async def main() -> None:
        before = asyncio.all_tasks()
        engine = await engine_for(llama, rows=1).start()
        asked = asyncio.create_task(engine.generate(HELLO, seed=LONG, max_new_tokens=450))
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(engine.aclose())
        await asyncio.sleep(0.02)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        with pytest.raises(EngineClosed):
            await asked
        assert asyncio.all_tasks() == before

    asyncio.run(main())


def test_a_loop_that_ends_without_closing_ends_the_engine(llama: Path) -> None:
    """As when a program forgets: asyncio.run cancels what is left, and the thread and the model go with it."""
    engines: list[Engine] = []

    async def main() -> None:
        engine = await engine_for(llama, rows=1).start()
        engines.append(engine)
        _ = asyncio.create_task(engine.generate(HELLO, seed=LONG, max_new_tokens=450))  # noqa: RUF006
        await asyncio.sleep(0.05)

    asyncio.run(main())
    with pytest.raises(EngineClosed):
        _ = engines[0].loop


def test_the_model_is_freed(llama: Path) -> None:
    async def main() -> None:
        engine = await engine_for(llama).start()
        assert engine._core is not None
        backend: Any = engine._core.backend
        model = weakref.ref(backend._loaded.model)
        await engine.generate(HELLO)
        del backend
        await engine.aclose()
        gc.collect()
        assert model() is None

    asyncio.run(main())


def test_nothing_blocks_the_loop(llama: Path) -> None:
    async def main() -> None:
        with blockbuster_ctx("asyncgen"):
            async with engine_for(llama) as engine:
                async for _ in engine.map([question(n) for n in range(8)]):
                    pass
                async for _ in engine.stream(HELLO):
                    pass

    asyncio.run(main())


def test_a_model_that_is_stuck_is_left_after_its_step(llama: Path) -> None:
    """Cancelling a caller does not wait for the model; closing does, for one step."""
    stuck, go = threading.Event(), threading.Event()

    def hang() -> None:
        stuck.set()
        go.wait(20)

    async def main() -> None:
        engine = await engine_for(llama).start()
        before_each_pass(engine, hang)
        with pytest.raises(TimeoutError):
            await engine.generate(HELLO, timeout=0.1)
        await asyncio.to_thread(stuck.wait)
        closing = asyncio.create_task(engine.aclose(drain=False))
        await asyncio.sleep(0.1)
        assert not closing.done()
        go.set()
        await closing

    asyncio.run(main())
