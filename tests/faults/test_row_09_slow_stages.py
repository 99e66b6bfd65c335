"""Row 9: a disk or a check a hundred times slower than usual is back-pressure: queues stay within their bounds, and
memory does not depend on how long it goes on.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Sequence

import anyio
import pytest

from asyncgen.pipeline import Flow
from asyncgen.records import Rejection, Story
from tests.flows import config_for, flow_for
from tests.trials import Trials

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_thread_of_ours_is_left")]

WINDOW = 256
PAUSE = 0.001
"""Seconds a record."""
QUEUES = ("prompts", "completions", "judging", "verdicts", "in order")


class Slow:
    """A run with one slow stage, and what was seen of it."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.written = self.undecided = self.queue = self.bytes = 0

    async def run(self, count: int) -> None:
        config = config_for(num_stories=count, window=WINDOW, bad_share=0.2)
        async with flow_for(config) as flow:
            if self._what == "check":
                self._slow_down(flow)
            gc.collect()
            tracemalloc.start()
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._look, flow)
                    await flow.run(self._sink)
                    group.cancel_scope.cancel()
                self.bytes = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    async def _look(self, flow: Flow) -> None:
        while True:
            depths = flow.snapshot().depths
            self.undecided = max(self.undecided, depths["undecided"])
            self.queue = max(self.queue, *(depths[name] for name in QUEUES))
            await anyio.sleep(0.002)

    async def _sink(self, records: Sequence[Story | Rejection]) -> None:
        self.written += sum(isinstance(record, Story) for record in records)
        await anyio.sleep(PAUSE * len(records) if self._what == "disk" else 0)

    def _slow_down(self, flow: Flow) -> None:
        judge_slice = flow._judge_slice

        async def slowly(completions: Sequence[object]) -> object:
            await anyio.sleep(PAUSE * len(completions))
            return await judge_slice(completions)  # type: ignore[arg-type]  # they are what it was given

        flow._judge_slice = slowly  # type: ignore[assignment, method-assign]


@pytest.mark.parametrize("what", ["disk", "check"])
async def test_whatever_is_slow_bounds_the_rest(what: str, trials: Trials) -> None:
    count = trials(400, 700)
    short, long = Slow(what), Slow(what)
    await short.run(count)
    await long.run(6 * count)
    assert (short.written, long.written) == (count, 6 * count)
    for each in (short, long):
        assert WINDOW / 2 < each.undecided <= WINDOW, "the slow stage did not hold anybody up"
        assert each.queue <= WINDOW
    # Of each story some bytes may stay, to know repeats by and in caches; no record, which has thousands.
    assert long.bytes <= short.bytes + 5 * count * 300
