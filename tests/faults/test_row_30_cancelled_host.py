"""Row 30: the program around us cancels at checkpoint k, for k = 1, 2, 3, ... until a run ends before that. No task and
no thread is left, what was committed stays, and a resumed run gives the same records as one left alone.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

import asyncgen
from asyncgen.config import Config
from asyncgen.output import writer as writing
from asyncgen.output.writer import Output
from asyncgen.records import Story
from tests import embedded
from tests.conftest import ENDING_SECONDS
from tests.faults.conftest import FULL, Trials
from tests.flows import config_for
from tests.programs import records

pytestmark = pytest.mark.timeout(1200)

EVERY = 1 if os.environ.get(FULL) else 29
"""Checkpoints from one that is tried to the next."""


class Steps(asyncio.tasks._PyTask):  # type: ignore[name-defined, misc]  # asyncio's own, written in Python
    """A task that counts the steps of all of its kind, each of which ends at a checkpoint, and cancels before one."""

    taken = 0
    at = 0
    cancel_host: Callable[[], object]

    def _Task__step(self, *arguments: Any) -> None:  # noqa: N802  # its name in asyncio
        Steps.taken += 1
        if Steps.taken == Steps.at:
            Steps.cancel_host()
        super()._Task__step(*arguments)


async def cancelled_at(at: int, work: Callable[[], Coroutine[Any, Any, object]], how: str) -> bool:
    """Whether that came before ``work``, which a host runs, had ended; nothing may be left of it."""
    loop = asyncio.get_running_loop()
    before = asyncio.all_tasks()
    scope = anyio.CancelScope()

    async def host() -> None:
        with scope:
            await work()

    Steps.taken, Steps.at = 0, at
    loop.set_task_factory(lambda loop, coroutine, **more: Steps(coroutine, loop=loop, **more))
    task = loop.create_task(host())
    Steps.cancel_host = scope.cancel if how == "scope" else task.cancel
    try:
        await asyncio.wait({task})
    finally:
        loop.set_task_factory(None)
    assert asyncio.all_tasks() == before, "a task is left"
    came = Steps.taken >= at
    if how == "asyncio":
        assert task.cancelled() == came
    if not task.cancelled():
        task.result()  # a scope may be cancelled when nothing is left to wait for
    return came


def sweep(
    work: Callable[[int], tuple[Callable[[], Coroutine[Any, Any, object]], Callable[[], object]]], how: str
) -> int:
    """Cancels at every checkpoint, then lets what was begun go on; the number of those tried."""
    threads = set(threading.enumerate())
    tried = 0
    for at in range(1, 1_000_000, EVERY):
        run, check = work(at)
        came = asyncio.run(cancelled_at(at, run, how))
        for thread in set(threading.enumerate()) - threads:  # anyio's end with the loop, which takes them a moment
            thread.join(ENDING_SECONDS)
            assert not thread.is_alive(), thread.name
        check()
        tried += 1
        if not came:
            break
    return tried


def config_at(path: Path) -> Config:
    return config_for(
        num_stories=9, bad_share=0.3, max_attempts=2, window=8, generation={"batch_size": 2}, output_path=path
    )


@pytest.mark.parametrize("how", ["asyncio", "scope"])
def test_a_run_cancelled_at_every_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trials: Trials, how: str
) -> None:
    monkeypatch.setattr(writing, "GROUP_SECONDS", 0.0)
    committed = 0
    commit = Output._commit

    async def noting(self: Output, *arguments: Any) -> None:
        nonlocal committed
        await commit(self, *arguments)
        committed = self.start

    monkeypatch.setattr(Output, "_commit", noting)
    asyncio.run(asyncgen.run(config_at(tmp_path / "whole.jsonl")))
    whole = both(tmp_path / "whole.jsonl")

    def work(at: int) -> Any:
        nonlocal committed
        committed = 0
        config = config_at(tmp_path / str(at) / "s.jsonl")

        def check() -> None:
            made = both(config.output_path)
            assert sum(map(len, made)) >= committed
            assert made == [all_of[: len(part)] for all_of, part in zip(whole, made, strict=True)]
            assert asyncio.run(asyncgen.run(config)).complete
            assert both(config.output_path) == whole

        return lambda: asyncgen.run(config), check

    tried = sweep(work, how)
    trials(tried, tried)


@pytest.mark.parametrize("how", ["asyncio", "scope"])
def test_a_pipeline_cancelled_at_every_checkpoint(tmp_path: Path, trials: Trials, how: str) -> None:
    config = config_at(tmp_path / "s.jsonl")

    async def read(into: list[Story], start: int = 0, kept: Sequence[str] = ()) -> None:
        async with asyncgen.open_pipeline(config, start=start, kept=kept) as stories:
            async for story in stories:
                into.append(story)  # noqa: PERF401  # one by one: the rest may never come

    whole: list[Story] = []
    asyncio.run(read(whole))

    def work(_: int) -> Any:
        got: list[Story] = []

        def check() -> None:
            rest: list[Story] = []
            start = got[-1].index + 1 if got else 0
            asyncio.run(read(rest, start, [story.content for story in got]))
            assert [story.content for story in (*got, *rest)] == [story.content for story in whole]
            assert [story.metadata for story in (*got, *rest)] == [story.metadata for story in whole]

        return lambda: read(got), check

    tried = sweep(work, how)
    trials(tried, tried)
    assert not list(tmp_path.iterdir()), "a pipeline writes nothing"


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["pipeline", "run"])
async def test_a_model_cancelled_at_random_moments(tmp_path: Path, trials: Trials, kind: str) -> None:
    """By asyncio's own cancel and by a scope: it ends within a decode step, and a resumed run equals a whole one."""
    rng = random.Random(5)
    model = embedded.tiny_model(tmp_path / "model")
    config = embedded.config_for(model, tmp_path, num_stories=80)

    async def use() -> None:
        if kind == "run":
            await asyncgen.run(config)
            return
        async with asyncgen.open_pipeline(config) as stories:
            async for _ in stories:
                pass

    before = embedded.other_tasks()
    for _ in range(trials(3, 12)):
        task = asyncio.create_task(use())
        await asyncio.sleep(rng.uniform(0, 1.2))
        if task.done():
            break
        steps = asyncio.get_running_loop().time()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.get_running_loop().time() - steps < 20  # a step of this model takes milliseconds
        assert embedded.other_tasks() == before
        with anyio.move_on_after(rng.uniform(0, 1.2)):
            await use()
            break
        assert embedded.other_tasks() == before
    if kind == "run":
        await asyncgen.run(config)
        await asyncgen.run(embedded.config_for(model, tmp_path, num_stories=80, output_path=tmp_path / "whole.jsonl"))
        assert records(tmp_path / "stories.jsonl") == records(tmp_path / "whole.jsonl")


def both(path: Path) -> list[list[dict[str, Any]]]:
    files = (path, path.with_suffix(".rejected.jsonl"))
    return [records(file) if file.exists() else [] for file in files]
