"""The two files of an output, opened for appending through aiofiles.

Unbuffered: a buffered file would write its rest again when it is closed after a failure.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import aiofiles
from aiofiles.threadpool.binary import AsyncFileIO

from asyncgen.output.places import Places
from asyncgen.output.points import points
from asyncgen.output.recovery import Mark
from asyncgen.output.thread import DiskThread

__all__ = ["Pair"]

_NAMES = ("stories", "rejected")


class Pair:
    """Appends, makes lasting, and cuts back. Every method raises OSError and then leaves clearing up to the caller."""

    def __init__(self, places: Places, thread: DiskThread) -> None:
        self._paths = (places.stories, places.rejected)
        self._thread = thread
        self._files: list[AsyncFileIO] = []
        self._unsynced: set[int] = set()

    async def open(self) -> None:
        """Opens both files; those that are not there are made."""
        for path in self._paths:
            self._files.append(await aiofiles.open(path, "ab", buffering=0, executor=self._thread.executor))

    async def append(self, stories: bytes, rejected: bytes) -> None:
        """Appends whole lines to each. Visible to readers at once; lasting only after ``sync``."""
        for number, data in enumerate((stories, rejected)):
            if data:
                self._unsynced.add(number)
                await self._append(self._files[number], data)
                points.at(f"{_NAMES[number]} appended")

    async def sync(self) -> None:
        """Makes what was appended last. A failure is final: the kernel may have dropped the pages, and a second
        fsync would report success without them. A file that is not at its place any more is one too: what is written
        to it would be lost, and nothing would say so.
        """
        for number in sorted(self._unsynced):
            self._unsynced.discard(number)
            await self._thread.run(_sync, self._files[number].fileno(), self._paths[number])
            points.at(f"{_NAMES[number]} synced")

    async def cut(self, mark: Mark) -> None:
        """Takes back what was appended after ``mark``."""
        for file, size in zip(self._files, (mark.stories, mark.rejected), strict=True):
            await file.truncate(size)

    async def close(self) -> None:
        """Closes both files, in one call of the thread: a task that is torn away between two leaves none open."""
        files, self._files = self._files, []
        await self._thread.run(_close, files)

    async def _append(self, file: AsyncFileIO, data: bytes) -> None:
        # A full disk shortens a write without an error; the next one then tells why.
        rest = memoryview(data)
        while rest:
            rest = rest[await file.write(rest) :]


def _sync(descriptor: int, path: Path) -> None:
    try:
        in_place = os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        in_place = False
    if not in_place:
        raise OSError(f"{path.name} was moved, removed or replaced while the run was writing it")
    os.fsync(descriptor)


def _close(files: Sequence[AsyncFileIO]) -> None:
    with ExitStack() as stack:
        for file in files:
            stack.callback(file._file.close)  # type: ignore[attr-defined]  # noqa: SLF001  # what aiofiles has opened
