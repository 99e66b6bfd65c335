"""The one thread that touches an output's files, and the lock that it holds.

Calls take effect in the order in which they were made, even if the task that waits for one is torn away; and an
application's own executor is never filled with our fsyncs.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
from filelock import FileLock, Timeout

from asyncgen.errors import OutputInUse
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
    """Holds the output's lock; makes its folder first, and gives that if it was not there. Raises OutputInUse, OSError.

    The lock belongs to an open file of this process: it ends with the process, however that ends. The file stays.
    """
    lock = FileLock(places.lock, thread_local=False)
    try:
        with anyio.CancelScope(shield=True):
            made = await thread.run(_take, lock, places)
        yield made
    finally:
        with anyio.CancelScope(shield=True):
            await thread.run(lock.release)


def _take(lock: FileLock, places: Places) -> Path | None:
    folder = places.lock.parent
    made = make_folder(folder)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        if not places.lock.exists():  # nobody holds it: this is how filelock says that it cannot be made
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
        raise OutputInUse(
            f"{places.stories} is being written by another run", hint="wait for it, or give another output_path"
        ) from error
    return folder if made else None
