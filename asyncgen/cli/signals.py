"""What a run does when it is interrupted."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from asyncgen.dashboard import tell
from asyncgen.tasks import single_cause

__all__ = ["Signals"]

_T = TypeVar("_T")

SECOND_SIGNAL_SECONDS = 0.8
"""After a second signal the process ends within this time, whatever the model is doing."""


class Signals:
    """First SIGINT or SIGTERM: finish what was begun, commit, stop. Second: stop at once."""

    def __init__(self) -> None:
        self.received = 0
        """The first one's number; 0 if there was none."""
        self.count = 0
        self._stop: anyio.Event | None = None

    async def watch(self, work: Callable[[anyio.Event], Awaitable[_T]]) -> _T | None:
        """What ``work`` returns, None if a second signal cancelled it; the event it is given is set by the first."""
        self._stop = anyio.Event()
        result: _T | None = None
        with single_cause():
            async with anyio.create_task_group() as group:
                group.start_soon(self._listen, group.cancel_scope)
                result = await work(self._stop)
                group.cancel_scope.cancel()
        return result

    async def _listen(self, everything: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for received in signals:
                self.count += 1
                self.received = self.received or int(received)
                if self.count == 1:
                    assert self._stop is not None
                    tell("stopping: finishing what was begun (once more: stop at once)")
                    self._stop.set()
                else:
                    _exit_soon(128 + self.received)
                    everything.cancel()


def _exit_soon(code: int) -> None:
    """Ends the process even if the model's thread does not come back; committed records are safe on disk."""
    timer = threading.Timer(SECOND_SIGNAL_SECONDS, os._exit, [code])
    timer.daemon = True
    timer.start()
