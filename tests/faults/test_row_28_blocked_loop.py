"""Row 28: the event loop is blocked. No call that may block (files, sleeps, locks, sockets) is made on it while a whole
run goes on, with everything that a run can have, and no turn of it takes long: 50 ms, of which the test allows ten
times as many on a machine that others use too. Both are seen to notice what does block.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from blockbuster import BlockBusterFunction, BlockingError, blockbuster_ctx

import asyncgen
from asyncgen.cli.watchdog import Watchdog
from asyncgen.config import Config
from asyncgen.dashboard import bars
from asyncgen.metrics import Watched
from asyncgen.ordering import Ordering
from asyncgen.tasks import single_cause
from tests import embedded
from tests.faults.conftest import Trials
from tests.flows import config_for

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_thread_of_ours_is_left")]

MOST_SECONDS = 0.5
"""Ten times the figure of the matrix."""
PAUSE = 0.002

CODE = """\
import time, zlib
import anyio

async def prompts(start: int):
    for number in range(start, 1_000_000):
        if number % 50 == 0:
            await anyio.sleep(0.001)
        yield f"prompt {number}"

async def waits(completion):
    await anyio.sleep(0)
    return zlib.crc32(completion.text.encode()) % 9 > 0

def blocks(completion):
    time.sleep(0.0005)
    return 1.0
"""


class Lag:
    """How long the event loop let a task wait that wanted to go on."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.turns = 0

    async def watch(self) -> None:
        while True:
            began = time.perf_counter()
            await anyio.sleep(PAUSE)
            self.longest = max(self.longest, time.perf_counter() - began - PAUSE)
            self.turns += 1


def config_with_everything(folder: Path, count: int) -> Config:
    """Three kinds of sources, retries, rejections, patterns, plain and async checks."""
    (folder / "code.py").write_text(CODE)
    (folder / "p.jsonl").write_text("".join(f'{{"prompt": "tell {n}"}}\n' for n in range(3000)))
    return config_for(
        num_stories=count,
        bad_share=0.3,
        max_attempts=2,
        output_path=folder / "stories.jsonl",
        sources=[
            {"kind": "template"},
            {"kind": "jsonl", "path": folder / "p.jsonl"},
            {"kind": "python", "function": f"{folder / 'code.py'}:prompts"},
        ],
        validation={
            "forbid_patterns": ["never .* never"],
            "functions": [{"function": f"{folder / 'code.py'}:{name}"} for name in ("waits", "blocks")],
        },
    )


@contextmanager
def terminal() -> Iterator[Any]:
    """One that somebody reads."""
    main, end = os.openpty()

    def read() -> None:
        try:
            while os.read(main, 65536):
                pass
        except OSError:  # nobody has the other end any more
            pass

    reader = threading.Thread(target=read)
    with os.fdopen(end, "w") as out:
        reader.start()
        yield out
    reader.join()
    os.close(main)


@contextmanager
def nothing_may_block() -> Iterator[None]:
    """Raises BlockingError where a call that may block is made on the event loop, by us or what we call."""
    with blockbuster_ctx("asyncgen") as detector:
        for name in ("fsync", "fdatasync", "truncate", "ftruncate", "open"):
            detector.functions[f"os.{name}"] = BlockBusterFunction(os, name, scanned_modules="asyncgen")
        # A file of /proc, which no disk holds up, once a second.
        detector.functions["io.BufferedReader.read"].can_block_in("asyncgen/dashboard/recent.py", {"_resident"})
        for function in detector.functions.values():
            function.deactivate()
            function.activate()
        yield


async def run_watched(config: Config) -> float:
    """Makes the stories as the command line does, resuming once, then as a pipeline; the longest turn of the loop."""
    lag = Lag()
    watchdog = Watchdog(600, lambda: None, "")

    with single_cause(), terminal() as out, nothing_may_block():

        async def watch(flow: Watched) -> None:
            async with anyio.create_task_group() as watchers:
                watchers.start_soon(watchdog.watch, flow)
                await bars(out)(flow)

        async with anyio.create_task_group() as group:
            group.start_soon(lag.watch)
            goal = config.num_stories or 0
            for count in (goal // 2, goal):
                report = await asyncgen.run(config.model_copy(update={"num_stories": count}), watch=watch)
                assert report.snapshot.accepted == count
            assert report.snapshot.rejected
            async with asyncgen.open_pipeline(config) as stories:
                assert len([story async for story in stories]) == goal
            group.cancel_scope.cancel()
    assert lag.turns > 20
    return lag.longest


async def test_a_whole_run_never_blocks_the_loop(tmp_path: Path, trials: Trials) -> None:
    assert await run_watched(config_with_everything(tmp_path, trials(300, 3000))) <= MOST_SECONDS


def sleep(_: Path) -> None:
    time.sleep(0.001)


def read_a_file(folder: Path) -> None:
    (folder / "p.jsonl").read_bytes()


def sync(folder: Path) -> None:
    with (folder / "p.jsonl").open("ab") as file:
        os.fsync(file.fileno())


def compute(_: Path) -> None:
    end = time.perf_counter() + 1.2 * MOST_SECONDS
    while time.perf_counter() < end:
        pass


@pytest.mark.parametrize("block", [sleep, read_a_file, sync, compute])
async def test_what_blocks_the_loop_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: Callable[[Path], None]
) -> None:
    add, blocked = Ordering.add, False

    def blocking(self: Ordering, verdicts: Any) -> Any:
        nonlocal blocked
        if not blocked:
            blocked = True
            block(tmp_path)
        return add(self, verdicts)

    monkeypatch.setattr(Ordering, "add", blocking)
    config = config_with_everything(tmp_path, 40)
    if block is compute:
        assert await run_watched(config) > MOST_SECONDS
        return
    with pytest.raises(BlockingError):
        await run_watched(config)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedded.tiny_model(tmp_path_factory.mktemp("model"))


async def test_a_model_never_blocks_the_loop(model: Path, tmp_path: Path) -> None:
    config = embedded.config_for(model, tmp_path)
    with nothing_may_block():
        report = await asyncgen.run(config)
        async with asyncgen.open_pipeline(config) as stories:
            assert len([story async for story in stories]) == 8
    assert report.complete
