"""How many may be inside at once, and who comes in next. Knows nothing about models."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

import anyio

from asyncgen.errors import AsyncgenError, EngineFull

__all__ = ["Gate"]


class Gate:
    """Lets in at most ``limit`` at a time, the most urgent first, among equals the one that came first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.inside = 0
        self._waiting: list[tuple[tuple[int, int], anyio.Event]] = []
        self._closed: Callable[[], AsyncgenError] | None = None

    @property
    def waiting(self) -> int:
        """How many wait to be let in."""
        return len(self._waiting)

    async def enter(self, urgency: tuple[int, int], *, wait: bool) -> None:
        """Comes in; whoever did calls ``leave``. ``urgency`` is unique, the smallest goes first.

        Raises EngineFull if there is no room and ``wait`` is false, and what the gate was closed with.
        """
        self.check()
        if self.inside < self.limit:
            self.inside += 1
            return
        if not wait:
            raise EngineFull(
                f"the engine is full: {self.inside} requests wait or run, at most {self.limit} may (max_requests)",
                hint="try again later, or let the call wait: when_full='wait'",
            )
        entry = (urgency, anyio.Event())
        heappush(self._waiting, entry)
        try:
            await entry[1].wait()
        except BaseException:
            if entry in self._waiting:
                self._waiting.remove(entry)
                heapify(self._waiting)
            elif self._closed is None:  # let in at the same moment
                self.leave()
            raise
        self.check()

    def leave(self) -> None:
        """Goes out, and lets the next one in."""
        if self._waiting:
            heappop(self._waiting)[1].set()
        else:
            self.inside -= 1

    def close(self, cause: Callable[[], AsyncgenError]) -> None:
        """Lets nobody in any more: whoever wants to gets an error of its own."""
        self._closed = cause
        while self._waiting:
            heappop(self._waiting)[1].set()

    def check(self) -> None:
        """Raises what the gate was closed with, if it was."""
        if self._closed is not None:
            raise self._closed()
