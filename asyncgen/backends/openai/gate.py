"""Who may be tried now: a place for each request that the pace allows, the most urgent prompt first."""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count

import anyio

from asyncgen.backends.openai.pace import Pace
from asyncgen.packing import Bell

__all__ = ["Gate", "Ticket"]


class Ticket:
    """Somebody who waits for a place."""

    def __init__(self) -> None:
        self.called = anyio.Event()
        self.number = 0
        """Of the try, once it was called."""
        self.gone = False


class Gate:
    """Made on the event loop. ``bell`` rings when there may be room where there was none."""

    def __init__(self, pace: Pace, bell: Bell) -> None:
        self.pace = pace
        self._bell = bell
        self._waiting: list[tuple[int, int, Ticket]] = []
        self._order = count()
        self._pauses = 0

    @property
    def free(self) -> int:
        """Places for which nobody waits; none during a pause."""
        waiting = sum(not ticket.gone for _, _, ticket in self._waiting)
        return 0 if self._pauses else max(0, self.pace.limit - self.pace.in_flight - waiting)

    def join(self, urgency: int) -> Ticket:
        """Begins to wait, behind those of lower ``urgency``."""
        ticket = Ticket()
        heappush(self._waiting, (urgency, next(self._order), ticket))
        self._call()
        return ticket

    async def admit(self, ticket: Ticket) -> int:
        """Waits until it is called; the try's number. Then ``leave`` gives the place back."""
        try:
            await ticket.called.wait()
        except BaseException:
            ticket.gone = True
            if ticket.number:
                self.leave()
            raise
        return ticket.number

    def leave(self) -> None:
        """Gives a place back."""
        self.pace.end()
        self._call()

    def pause(self) -> None:
        """Lets nobody in until ``resume``, as often as this was called."""
        self._pauses += 1

    def resume(self) -> None:
        """Ends a pause."""
        self._pauses -= 1
        self._call()

    def _call(self) -> None:
        while self._waiting and not self._pauses and self.pace.in_flight < self.pace.limit:
            _, _, ticket = heappop(self._waiting)
            if not ticket.gone:
                ticket.number = self.pace.begin()
                ticket.called.set()
        self._bell.ring()
