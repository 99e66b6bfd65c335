"""The two files of an output, opened for appending through aiofiles.

Unbuffered: a buffered file would write its rest again when it is closed after a failure. Every call runs in the
executor given, one thread, so calls take effect in the order they were made even if a waiter is torn away.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Executor

import aiofiles
from aiofiles.threadpool.binary import AsyncFileIO

from asyncgen.output.places import Places
from asyncgen.output.recovery import Mark

__all__ = ["Pair"]


class Pair:
    """Appends, makes lasting, and cuts back. Every method raises OSError and then leaves clearing up to the caller."""

    def __init__(self, places: Places, executor: Executor) -> None:
        self._paths = (places.stories, places.rejected)
        self._executor = executor
        self._files: list[AsyncFileIO] = []
        self._unsynced: set[int] = set()

    async def open(self) -> None:
        """Opens both files; those that are not there are made."""
        for path in self._paths:
            self._files.append(await aiofiles.open(path, "ab", buffering=0, executor=self._executor))

    async def append(self, stories: bytes, rejected: bytes) -> None:
        """Appends whole lines to each. Visible to readers at once; lasting only after ``sync``."""
        for number, data in enumerate((stories, rejected)):
            if data:
                self._unsynced.add(number)
                await self._append(self._files[number], data)

    async def sync(self) -> None:
        """Makes what was appended last. A failure is final: the kernel may have dropped the pages, and a second
        fsync would report success without them.
        """
        for number in sorted(self._unsynced):
            self._unsynced.discard(number)
            await self._run(os.fsync, self._files[number].fileno())

    async def cut(self, mark: Mark) -> None:
        """Takes back what was appended after ``mark``."""
        for file, size in zip(self._files, (mark.stories, mark.rejected), strict=True):
            await file.truncate(size)

    async def close(self) -> None:
        """Closes both files."""
        files, self._files = self._files, []
        for file in files:
            await file.close()

    async def _append(self, file: AsyncFileIO, data: bytes) -> None:
        # A full disk shortens a write without an error; the next one then tells why.
        rest = memoryview(data)
        while rest:
            rest = rest[await file.write(rest) :]

    async def _run(self, function: object, *args: object) -> None:
        await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)  # type: ignore[arg-type]
