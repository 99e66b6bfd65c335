"""What a command does when it is interrupted.

Python's own handlers, not the event loop's: user code that blocks the loop must not make the program deaf. A handler
runs between two bytecodes of the main thread, whatever the loop is doing, and must take no lock: what it interrupted
may hold it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import NoReturn, TypeVar

import anyio

from asyncgen.dashboard import tell
from asyncgen.tasks import single_cause

__all__ = ["Signals", "stop_when_told"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_Handler = Callable[[int, FrameType | None], object]

SECOND_SIGNAL_SECONDS = 0.8
"""After a second signal the process ends within this time, whatever the model is doing."""
GRACE_SECONDS = 8.0
"""After a first one the process ends so long after ``drain_timeout``, whatever the model is doing: time for a step of
it and a commit. With the usual 20 seconds, that fits into the 30 after which systems kill what they have told to end.
"""

_STOP, _CANCEL = 1, 2
_STDERR = 2


class Signals:
    """First SIGINT or SIGTERM: finish what was begun, commit, stop. Second: stop at once. Third: end the process.

    Until ``begun`` is called there is nothing to finish, and the first counts as the second. What does not come back in
    time, a model's thread that is stuck, say, is ended with the process: all that was decided is on disk.
    """

    def __init__(self, drain_timeout: float, again: str) -> None:
        """``again`` is the command that goes on."""
        self._drain_timeout, self._again = drain_timeout, again
        self.received = 0
        """The first one's number; 0 if there was none."""
        self.count = 0
        self._begun = self._over = self._complete = False
        self._ends_within: SimpleQueue[float] = SimpleQueue()  # a queue that signal handlers may use
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: anyio.Event
        self._cancel: anyio.Event

    def begun(self) -> None:
        """From now on there is something to finish, and a terminal that goes away does not end it."""
        self._begun = True

    def completed(self) -> None:
        """From now on a signal ends the process as it would have ended: there is nothing to go on with."""
        self._complete = True

    async def watch(self, work: Callable[[anyio.Event], Awaitable[_T]]) -> _T | None:
        """What ``work`` returns, None if a second signal cancelled it; the event it is given is set by the first."""
        threading.Thread(target=self._enforce, name="asyncgen signals", daemon=True).start()
        self._stop, self._cancel = anyio.Event(), anyio.Event()
        self._loop = asyncio.get_running_loop()
        stop = anyio.Event()
        result: _T | None = None
        _handle(self._receive, signal.SIGINT, signal.SIGTERM)  # to the end of the process, which may take a while
        try:
            with single_cause(), self._hang_up_survived():
                async with anyio.create_task_group() as group:
                    group.start_soon(self._say_and_stop, stop)
                    group.start_soon(self._cancel_all, group.cancel_scope)
                    result = await work(stop)
                    group.cancel_scope.cancel()
        finally:
            self._over = True
        return result

    def cancel(self) -> None:
        """Cancels the work as the second signal does, without one; in any thread, at any time."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._cancel.set)

    def _receive(self, number: int, _: FrameType | None) -> None:
        assert self._loop is not None
        if self._complete:
            os._exit(0)
        self.received = self.received or number
        self.count += 1 if self._begun or self.count else _CANCEL
        if self._over:
            _leave(self.received, self._again)
        elif self.count == _STOP:
            self._ends_within.put(self._drain_timeout + GRACE_SECONDS)
            self._loop.call_soon_threadsafe(self._stop.set)
        elif self.count == _CANCEL:
            self._ends_within.put(SECOND_SIGNAL_SECONDS)
            self._loop.call_soon_threadsafe(self._cancel.set)
        else:
            _leave(self.received, self._again)

    def _enforce(self) -> None:
        """In a thread that is there before it is needed: ends the process when the time is over that the last signal
        leaves.
        """
        seconds = self._ends_within.get()
        with suppress(Empty):
            while True:
                seconds = self._ends_within.get(timeout=seconds)
        _leave(self.received, self._again)

    async def _say_and_stop(self, stop: anyio.Event) -> None:
        await self._stop.wait()
        tell("stopping: finishing what was begun (once more: stop at once)")
        stop.set()

    async def _cancel_all(self, everything: anyio.CancelScope) -> None:
        await self._cancel.wait()
        everything.cancel()

    @contextmanager
    def _hang_up_survived(self) -> Iterator[None]:
        """SIGHUP, which a terminal sends when it is closed, ends only what has not begun."""

        def hang_up(number: int, _: FrameType | None) -> None:
            if self._begun and self._loop is not None:
                self._loop.call_soon_threadsafe(
                    _log.warning, "the terminal is gone; kill %d stops the run", os.getpid()
                )
            else:
                _leave(number)

        before = signal.getsignal(signal.SIGHUP)
        _handle(hang_up, signal.SIGHUP)
        try:
            yield
        finally:
            signal.signal(signal.SIGHUP, before)


def stop_when_told() -> None:
    """From now on SIGINT and SIGTERM end the process at once, saying so. For commands with nothing to finish."""
    _handle(lambda number, _: _leave(number), signal.SIGINT, signal.SIGTERM)


def _handle(handler: _Handler, *numbers: signal.Signals) -> None:
    """These signals go to ``handler``, but those that whoever started the program wants ignored, as nohup does."""
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _leave(number: int, again: str = "") -> NoReturn:
    """Ends the process now, whatever does not come back; what was written is on disk. Says so, and how to go on."""
    words = "asyncgen: stopped" + (f"; go on with: {again}" if again else "")
    with suppress(OSError, ValueError):
        if select.select([], [_STDERR], [], 0)[1]:  # a terminal that is held would not let go of this
            os.write(_STDERR, f"{words}\n".encode(errors="backslashreplace"))
    os._exit(128 + number)
