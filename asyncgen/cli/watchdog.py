"""Ends a run that has come to a standstill, saying where everything stands: nothing hangs for ever.

What moves is seen on the event loop (``Watchdog.watch``); whether it still does is decided in a thread of its own, for
the loop may be what hangs. Everything that was decided is committed within half a second of its writing, so nothing is
lost by ending the process, whatever its threads are stuck in. One thing escapes it: code in C that keeps Python's lock
stops this thread too.
"""

from __future__ import annotations

import asyncio
import faulthandler
import io
import logging
import os
import threading
import time
from collections.abc import Callable, Hashable
from tempfile import TemporaryFile

import anyio

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
_FRAMES = 12


class Watchdog:
    """Allows a run ``seconds`` without progress; None any time."""

    def __init__(self, seconds: float | None, cancel: Callable[[], object], again: str) -> None:
        """``cancel``, which is called in a thread, asks the run to end; ``again`` is the command that goes on."""
        self._seconds, self._cancel, self._again = seconds, cancel, again
        self._stood = 0.0
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
                if (now := _movement(flow.snapshot())) != before:
                    before, self._stood = now, 0.0
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
        tell(f"{what}; this is where it stands:\n{_stacks()}{self._tasks()}")
        tell(f"stopped; what was decided is on disk; go on with: {self._again}")
        _log.error("%s", what)
        self._cancel()

    def _tasks(self) -> str:
        """Where the tasks of the event loop wait; another thread's view, good enough for reading."""
        assert self._loop is not None
        text = io.StringIO()
        for task in asyncio.all_tasks(self._loop):
            task.print_stack(limit=_FRAMES, file=text)
        return text.getvalue()


def _movement(snapshot: Snapshot) -> Hashable:
    """Differs from what it was if anything has been done since: all that is counted, and no time."""
    s = snapshot
    done = (s.generated, s.cells, s.batches, s.rows_filled, s.prefix_misses, s.attempts, s.accepted, s.rejected)
    return (*done, s.stopping, *s.depths.values(), *s.validator_calls.values())


def _stacks() -> str:
    """Where every thread is. By faulthandler, which takes no lock."""
    with TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
