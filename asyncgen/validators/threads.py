"""Worker threads for plain functions of the user's, which nothing can stop once they are called.

anyio's own worker threads would do, but for the end: the interpreter waits for them, so one call that never returns
would keep a finished run from ending. These are daemons, one a call, and end with it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress

import anyio

__all__ = ["NoThread", "Threads"]


class NoThread(Exception):
    """The system gives no thread now, so that the function was not called; one that ends may make room."""


class Threads:
    """Calls functions in threads of their own. How many at once is the caller's business."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.abandoned = 0
        """Threads still running whose caller was cancelled."""
        self._one_ended = anyio.Event()

    async def wait_until_fewer(self, abandoned: int) -> None:
        """Waits until fewer than so many threads are abandoned."""
        while self.abandoned >= abandoned:
            await self._one_ended.wait()

    async def run(self, function: Callable[[], object]) -> object:
        """What ``function`` returns or raises. Cancelled, it leaves the thread behind, which ends with its call.

        Raises NoThread if there is none to be had.
        """
        loop = asyncio.get_running_loop()
        done = anyio.Event()
        abandoned = False
        results: list[object] = []
        errors: list[BaseException] = []

        def ended() -> None:
            if abandoned:
                self.abandoned -= 1
                self._one_ended.set()
                self._one_ended = anyio.Event()
            done.set()

        def work() -> None:
            try:
                results.append(function())
            except BaseException as error:  # noqa: BLE001  # SystemExit too: it is raised where the call was made
                errors.append(error)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(ended)

        thread = threading.Thread(target=work, name=f"asyncgen validator {self._name}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise NoThread(str(error)) from error
        try:
            await done.wait()
        finally:
            abandoned = not done.is_set()
            self.abandoned += abandoned
        if errors:
            raise errors[0]
        return results[0]
