"""What a command does when it is interrupted.

Not the event loop's handlers: code of the user's that blocks the loop must not make the program deaf. Nor Python's
alone, which run between two bytecodes of the main thread, and so not while that is in code in C. What the interpreter's
own handler, in C, writes into a pipe (``signal.set_wakeup_fd``) is read by a thread, which acts on it.
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
from math import inf
from time import monotonic
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
_HANDLED = 0x80
"""Marks a byte that says how many signals Python has handled. The others are numbers of signals, as they come."""
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
        self._handled = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: anyio.Event
        self._cancel: anyio.Event
        self._heard, self._told = os.pipe()
        os.set_blocking(self._told, False)

    def begun(self) -> None:
        """From now on there is something to finish, and a terminal that goes away does not end it."""
        self._begun = True

    def completed(self) -> None:
        """From now on a signal ends the process as it would have ended: there is nothing to go on with."""
        self._complete = True

    async def watch(self, work: Callable[[anyio.Event], Awaitable[_T]]) -> _T | None:
        """What ``work`` returns, None if a second signal cancelled it; the event it is given is set by the first."""
        self._stop, self._cancel = anyio.Event(), anyio.Event()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._listen, name="asyncgen signals", daemon=True).start()
        stop = anyio.Event()
        result: _T | None = None
        signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)
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
        """In the main thread, sooner or later: for the time in which there are no other threads any more, and where
        somebody else has taken the wakeup descriptor.
        """
        if self._complete:
            os._exit(0)
        if self._over:
            _leave(self.received or number, self._again)
        self._handled += 1
        self.received = self.received or number
        with suppress(BlockingIOError):  # then there is enough to be read
            os.write(self._told, bytes([_HANDLED | min(self._handled, 15)]))

    def _listen(self) -> None:
        """In a thread: does what each signal asks for, and ends the process when the time is over that it leaves."""
        heard, before, end = 0, 0, inf
        while select.select([self._heard], [], [], None if end == inf else max(0.0, end - monotonic()))[0]:
            for byte in os.read(self._heard, 64):
                if byte & _HANDLED:
                    heard = max(heard, byte & ~_HANDLED)
                elif byte in (signal.SIGINT, signal.SIGTERM):
                    heard += 1
                    self.received = self.received or byte
            if heard and not self.count and not self._begun:
                before = 1  # as if there had been one: there is nothing to finish
            if heard + before > self.count and heard:
                self.count = heard + before
                end = monotonic() + self._act()
        _leave(self.received, self._again)

    def _act(self) -> float:
        """Does what so many signals ask for; seconds after which the process is to end, whatever does not come back."""
        assert self._loop is not None
        if self._complete:
            os._exit(0)
        if self._over or self.count > _CANCEL:
            _leave(self.received, self._again)
        with suppress(RuntimeError):  # the loop has just been closed
            self._loop.call_soon_threadsafe((self._stop if self.count == _STOP else self._cancel).set)
        return self._drain_timeout + GRACE_SECONDS if self.count == _STOP else SECOND_SIGNAL_SECONDS

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
