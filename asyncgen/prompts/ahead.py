"""Items of a source, fetched by a task of their own before they are asked for.

The order of a run is fixed, so a slow source slows it; what can be done is to let every source work while another one
is waited for. The buffer is small and bounded.

The iterator of items lives and dies in its one task: it is closed there on every way out. A user's function may be in
it, so it gets what asyncio promises: one ``CancelledError``, after which cleaning up may wait for something. anyio
would cancel each such wait anew; so the task is in no task group and is ended by ``close``, with a deadline. One that
does not end even then is left behind: nothing can stop it, and the run is not to wait for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from asyncgen.records import Prompt

__all__ = ["AHEAD", "CLOSING_SECONDS", "Ahead", "Items"]

AHEAD = 64
"""Items that wait for a taker, at most."""
CLOSING_SECONDS = 10.0
"""Time that an iterator may take to clean up when it is closed early."""

LAST_SECONDS = 1.0
"""Time after that which a second cancellation may take."""

_log = logging.getLogger(__name__)

_Open = Callable[[int], AsyncGenerator[Prompt, None]]


class Items(Protocol):
    """The prompts of one source by position; their ``index`` is the position too."""

    count: int | None
    """Items that there are; None if that is not known, or if they never end."""

    @property
    def let_go(self) -> int:
        """Items so far that were made again, by a source that cannot begin anywhere, to come to a position."""

    def begin(self, position: int) -> None:
        """Starts fetching at ``position``, which will be asked for first."""

    def get(self, position: int) -> Prompt | None:
        """Item ``position`` if it is here now."""

    def close(self) -> None:
        """Ends fetching; what it holds is let go in its own task."""

    async def wait(self, position: int) -> bool:
        """Waits until item ``position`` is here; False if the source ends before it. Raises what the source raised."""


class Ahead:
    """``Items`` of what ``open_at`` opens at a position. Any may be asked for; the next one is what is fast."""

    def __init__(
        self, open_at: _Open, group: TaskGroup, count: int | None = None, let_go: Callable[[], int] = int
    ) -> None:
        self.count = count
        self._let_go = let_go
        self._open_at = open_at
        self._group = group
        self._fetch: _Fetch | None = None

    @property
    def let_go(self) -> int:
        """See ``Items.let_go``."""
        return self._let_go()

    def begin(self, position: int) -> None:
        """See ``Items.begin``."""
        before = self._fetch
        if before is None or before.position != position:
            self.close()
            self._fetch = _Fetch(position)
            self._group.start_soon(self._fetch.run, self._open_at, before)

    def close(self) -> None:
        """See ``Items.close``."""
        if self._fetch is not None:
            self._fetch.stop()

    def get(self, position: int) -> Prompt | None:
        """See ``Items.get``."""
        fetch = self._fetch
        return None if fetch is None or fetch.position != position else fetch.pop()

    async def wait(self, position: int) -> bool:
        """See ``Items.wait``."""
        self.begin(position)
        assert self._fetch is not None
        return await self._fetch.wait()


class _Fetch:
    """One walk through the items, from a position on."""

    def __init__(self, position: int) -> None:
        self.position = position
        """Of the next item to be popped."""
        self.over = anyio.Event()
        self._first = position
        self._items: deque[Prompt] = deque()
        self._failure: Exception | None = None
        self._arrived = anyio.Event()
        self._room = anyio.Event()
        self._ending = anyio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    async def run(self, open_at: _Open, before: _Fetch | None) -> None:
        """Walks in a task apart and waits until it is over. Never raises: what the source raises is said when the
        items before it are taken.
        """
        with anyio.CancelScope(shield=True):
            if before is not None:
                await before.over.wait()  # two at once of what a user opens may be one too many
            if not self._stopped:
                self._task = asyncio.create_task(self._walk(open_at), name="asyncgen source")
                self._task.add_done_callback(lambda _: self._ending.set())
                await self._ending.wait()
                await self._end(self._task)
        self.over.set()
        self._arrived.set()

    async def _walk(self, open_at: _Open) -> None:
        try:
            async with aclosing(open_at(self._first)) as items:
                async for item in items:
                    await self._put(item)
        except asyncio.CancelledError:
            if not self._stopped:
                self._failure = RuntimeError("the task that reads a source was cancelled from outside")
        except Exception as failure:  # noqa: BLE001  # raised by ``wait``
            self._failure = failure

    async def _end(self, task: asyncio.Task[None]) -> None:
        for seconds in (CLOSING_SECONDS, LAST_SECONDS):
            await asyncio.wait({task}, timeout=seconds)
            if task.done():
                return
            task.cancel()
        _log.info("a source does not end when it is cancelled, and is left behind")

    def stop(self) -> None:
        """Ends the walk, once; one that has not begun does not begin."""
        if self._stopped or self.over.is_set():
            return
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
            self._ending.set()

    def pop(self) -> Prompt | None:
        """The next item if it is here."""
        if not self._items:
            return None
        self.position += 1
        self._room.set()
        return self._items.popleft()

    async def wait(self) -> bool:
        """Whether there is a next item, once that is known."""
        while not self._items and not self.over.is_set():
            self._arrived = anyio.Event()
            await self._arrived.wait()
        if not self._items and self._failure is not None:
            raise self._failure
        return bool(self._items)

    async def _put(self, item: Prompt) -> None:
        self._items.append(item)
        self._arrived.set()
        while len(self._items) >= AHEAD:
            self._room = anyio.Event()
            await self._room.wait()
