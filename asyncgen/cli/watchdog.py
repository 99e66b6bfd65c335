"""Ends a run that has come to a standstill, saying where everything stands: nothing hangs for ever.

What moves is seen on the event loop (``Watchdog.watch``); whether it still does is decided in a thread of its own, for
the loop may be what hangs. Everything that was decided is committed within half a second of its writing, so nothing is
lost by ending the process, whatever its threads are stuck in. One thing escapes it: code in C that keeps Python's lock
stops this thread too.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from tempfile import TemporaryFile
from types import AsyncGeneratorType
from typing import Any

import anyio

from asyncgen.bottleneck import bottleneck
from asyncgen.dashboard import tell
from asyncgen.metrics import Snapshot, Watched, duration

_log = logging.getLogger(__name__)

__all__ = ["STALLED", "Watchdog"]

STALLED = 75
"""Exit code: EX_TEMPFAIL of sysexits, try again."""
LEAVING_SECONDS = 2.0
"""The process ends so long after it was found to stand still, at the latest."""
_LOOKS = 40
"""Looks in the time that is allowed."""
_LONGEST_PAUSE = 1.0
_FRAMES, _WAITS = ("cr_frame", "ag_frame", "gi_frame"), ("cr_await", "ag_await", "gi_yieldfrom")
"""What coroutines and generators tell of themselves."""


class Watchdog:
    """Allows a run ``seconds`` without progress; None any time."""

    def __init__(self, seconds: float | None, cancel: Callable[[], object], again: str) -> None:
        """``cancel``, which is called in a thread, asks the run to end; ``again`` is the command that goes on."""
        self._seconds, self._cancel, self._again = seconds, cancel, again
        self._stood = 0.0
        self._seen: tuple[Snapshot, Snapshot] | None = None
        """The run when it last moved, and when it was last looked at."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over = threading.Event()
        self.bit = False
        """Whether the run stood still for too long."""

    async def watch(self, flow: Watched) -> None:
        """Looks at ``flow`` until cancelled."""
        if self._seconds is None:
            return
        pause = min(_LONGEST_PAUSE, self._seconds / _LOOKS)
        self._loop = asyncio.get_running_loop()
        thread = threading.Thread(target=self._guard, args=(self._seconds, pause), name="watchdog", daemon=True)
        thread.start()
        before: Hashable = None
        try:
            while True:
                snapshot = flow.snapshot()
                if (now := _movement(snapshot)) != before or self._seen is None:
                    before, self._stood, self._seen = now, 0.0, (snapshot, snapshot)
                self._seen = (self._seen[0], snapshot)
                await anyio.sleep(pause)
        finally:
            self._over.set()

    def _guard(self, seconds: float, pause: float) -> None:
        """Counts the time without movement itself: a process that was stopped and goes on (Ctrl-Z, a container that is
        paused) has stood still for no longer than a look or two.
        """
        before = time.monotonic()
        while not self._over.wait(pause):
            now = time.monotonic()
            self._stood += min(now - before, 2 * pause)
            before = now
            if self._stood > seconds:
                self._bite(seconds)
                return

    def _bite(self, seconds: float) -> None:
        """In the thread: says where everything stands and asks the run to end; the process ends in any case."""
        self.bit = True
        by_force = threading.Timer(LEAVING_SECONDS, os._exit, [STALLED])
        by_force.daemon = True
        by_force.start()  # first: whoever holds the terminal or the log may be what hangs
        what = f"stalled: no token, verdict or record for {duration(seconds)} (watchdog)"
        tell(f"{what}; this is where it stands:\n{_stacks()}{self._tasks()}{what}{self._who()}")
        tell(f"stopped; what was decided is on disk; go on with: {self._again}")
        _log.error("%s%s", what, self._who())
        self._cancel()

    def _who(self) -> str:
        """What limited the run while it stood still, if that can be told: nothing can where the loop itself hangs."""
        if self._seen is None or self._seen[0] is self._seen[1]:
            return ""
        who = bottleneck(self._seen[1], self._seen[0])
        return f"; waiting for {who}" if who else ""

    def _tasks(self) -> str:
        """Where the tasks of the event loop wait, equal ones once; another thread's view, good enough for reading."""
        assert self._loop is not None
        places = Counter(_awaits(task) for task in asyncio.all_tasks(self._loop))
        return "\n".join(f"{count} task{'s' * (count > 1)} at\n{place}" for place, count in places.items()) + "\n"


def _movement(snapshot: Snapshot) -> Hashable:
    """Differs from what it was if anything has been done since: all that is counted, and no time."""
    s = snapshot
    done = (s.generated, s.cells, s.batches, s.rows_filled, s.prefix_misses, s.attempts, s.accepted, s.rejected)
    return (*done, s.stopping, *s.depths.values(), *s.validator_calls.values())


def _awaits(task: asyncio.Task[object]) -> str:
    """Where a task waits, from its outermost coroutine to what that waits for in the end."""
    lines = []
    waits: Any = task.get_coro()
    while waits is not None:
        frame = next((f for name in _FRAMES if (f := getattr(waits, name, None)) is not None), None)
        if frame is not None:
            lines.append(f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}')
        following = next((w for name in _WAITS if (w := getattr(waits, name, None)) is not None), None)
        if following is None and frame is None:  # what ``anext`` gives knows its generator, and does not tell
            following = next((each for each in gc.get_referents(waits) if isinstance(each, AsyncGeneratorType)), None)
        waits = following
    return "\n".join(lines)


def _stacks() -> str:
    """Where every thread is. By faulthandler, which takes no lock."""
    with TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
