"""Inside somebody else's event loop, with a real (tiny, random) model: leaving is quick and leaves nothing behind."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

import asyncgen
from tests.embedded import config_for, other_tasks, tiny_model
from tests.programs import records

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    gc.collect()
    ours = [
        thread.name
        for thread in set(threading.enumerate()) - before
        # anyio and asyncio keep idle worker threads for the loop's next use; they end with the loop.
        if not thread.name.startswith(("AnyIO worker", "asyncio_"))
    ]
    assert not ours


async def test_run_from_a_running_loop(model: Path, tmp_path: Path) -> None:
    before = other_tasks()
    report = await asyncgen.run(config_for(model, tmp_path))
    assert report.complete
    assert len(records(tmp_path / "stories.jsonl")) == 8
    assert other_tasks() == before


async def test_early_break(model: Path, tmp_path: Path) -> None:
    before = other_tasks()
    config = config_for(model, tmp_path, num_stories=None)
    with anyio.fail_after(60):
        async with asyncgen.open_pipeline(config) as stories:
            async for story in stories:
                assert story.index == 0
                break
    assert other_tasks() == before
    assert await anyio.Path(tmp_path / "stories.jsonl").exists() is False, "a pipeline writes nothing"


async def test_two_pipelines_at_once(model: Path, tmp_path: Path) -> None:
    got: dict[int, list[str]] = {}

    async def read(seed: int) -> None:
        async with asyncgen.open_pipeline(config_for(model, tmp_path, seed=seed)) as stories:
            got[seed] = [story.content async for story in stories]

    async def alone(seed: int) -> list[str]:
        await read(seed)
        return got[seed]

    expected = {seed: await alone(seed) for seed in (1, 2)}
    async with anyio.create_task_group() as group:
        group.start_soon(read, 1)
        group.start_soon(read, 2)
    assert got == expected


async def test_the_host_goes_on_while_stories_are_made(model: Path, tmp_path: Path) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await anyio.sleep(0.005)
            ticks += 1

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await asyncgen.run(config_for(model, tmp_path))
        group.cancel_scope.cancel()
    assert ticks > 10
