"""The one thread that touches an output's files, and the lock that it holds.

Calls take effect in the order in which they were made, even if the task that waits for one is torn away; and an
application's own executor is never filled with our fsyncs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from asyncgen.output.lock import Lock
from asyncgen.output.places import Places, make_folder

__all__ = ["DiskThread", "disk_thread", "locked"]

_T = TypeVar("_T")


class DiskThread:
    """Runs calls one after the other; ``executor`` is for aiofiles."""

    def __init__(self) -> None:
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="asyncgen-output")

    async def run(self, function: Callable[..., _T], *args: object) -> _T:
        """Calls ``function`` in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, function, *args)


@asynccontextmanager
async def disk_thread() -> AsyncIterator[DiskThread]:
    """A thread that is gone on leaving."""
    thread = DiskThread()
    try:
        yield thread
    finally:
        thread.executor.shutdown(wait=False)  # at once: what follows can be torn away by asyncio's own Task.cancel()
        with anyio.CancelScope(shield=True):
            # Joining a thread that has nothing left to do takes no time, and would block the loop all the same.
            await anyio.to_thread.run_sync(thread.executor.shutdown, limiter=anyio.CapacityLimiter(1))


@asynccontextmanager
async def locked(places: Places, thread: DiskThread) -> AsyncIterator[Path | None]:
    """Holds the output's lock; makes its folder first, and gives that if it was not there. Raises OutputInUse and
    OSError.
    """
    lock = Lock(places)
    try:
        with anyio.CancelScope(shield=True):
            made = await thread.run(_take, lock, places)
        yield made
    finally:
        with anyio.CancelScope(shield=True):
            await thread.run(lock.release)


def _take(lock: Lock, places: Places) -> Path | None:
    folder = places.lock.parent
    made = make_folder(folder)
    lock.take()
    return folder if made else None
