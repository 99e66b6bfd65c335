"""Inside somebody else's event loop, with a real (tiny, random) model: leaving is quick and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from blockbuster import blockbuster_ctx

import asyncgen
from tests.backends.helpers import make_model
from tests.programs import records

pytestmark = pytest.mark.anyio

FREE = {"min_words": 0, "max_words": 9999, "require_words": False, "require_ending": False, "max_repetition": 1.0}
"""Validation that random weights can pass."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), "llama", context=2048)


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


def config_for(model: Path, folder: Path, **changes: object) -> asyncgen.Config:
    return asyncgen.Config.model_validate(
        {
            "model_name": str(model),
            "output_path": folder / "stories.jsonl",
            "backend": {"kind": "static", "device": "cpu"},
            "generation": {"batch_size": 4, "max_new_tokens": 24},
            "validation": FREE | {"min_quality": 0.0, "reject_repeats": False, "copy_words": 0},
            "use_k_shot": False,
            "num_stories": 8,
            **changes,
        }
    )


def other_tasks() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task() and not task.done()]


async def test_run_from_a_running_loop(model: Path, tmp_path: Path) -> None:
    before = other_tasks()
    report = await asyncgen.run(config_for(model, tmp_path))
    assert report.complete
    assert len(records(tmp_path / "stories.jsonl")) == 8
    assert other_tasks() == before


async def test_the_loop_is_never_blocked(model: Path, tmp_path: Path) -> None:
    """No call that blocks (files, sleeps, sockets, locks) is made on the loop's thread while stories are made."""
    config = config_for(model, tmp_path)
    with blockbuster_ctx("asyncgen") as detector:
        detector.activate()
        report = await asyncgen.run(config)
        async with asyncgen.open_pipeline(config) as stories:
            assert len([story async for story in stories]) == 8
    assert report.complete


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


@pytest.mark.parametrize("kind", ["pipeline", "run"])
async def test_cancellation_at_random_moments(model: Path, tmp_path: Path, kind: str) -> None:
    """By asyncio's own cancel and by a scope: it ends within a decode step, and a resumed run equals a whole one."""
    rng = random.Random(5)
    config = config_for(model, tmp_path, num_stories=150)

    async def use() -> None:
        if kind == "run":
            await asyncgen.run(config)
            return
        async with asyncgen.open_pipeline(config) as stories:
            async for _ in stories:
                pass

    before = other_tasks()
    for _ in range(12):
        task = asyncio.create_task(use())
        await asyncio.sleep(rng.uniform(0, 1.2))
        if task.done():
            break
        steps = asyncio.get_running_loop().time()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.get_running_loop().time() - steps < 20  # a step of this model takes milliseconds
        assert other_tasks() == before
        with anyio.move_on_after(rng.uniform(0, 1.2)):
            await use()
            break
        assert other_tasks() == before
    if kind == "run":
        await asyncgen.run(config)
        await asyncgen.run(config_for(model, tmp_path, num_stories=150, output_path=tmp_path / "whole.jsonl"))
        assert records(tmp_path / "stories.jsonl") == records(tmp_path / "whole.jsonl")


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
