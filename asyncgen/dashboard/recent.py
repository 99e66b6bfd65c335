"""What a view remembers between two looks: the last ten seconds of a run, and the memory of this process."""

from __future__ import annotations

from collections import deque

import psutil

from asyncgen.dashboard.figures import Figure, Memory, figures
from asyncgen.metrics import Snapshot

__all__ = ["Recent"]

SPAN = 10.0
"""Seconds that "now" means."""
STEP = 1.0
"""Seconds between two snapshots that are kept, and between two looks at the memory."""


class Recent:
    """Give it each snapshot; it gives the figures."""

    def __init__(self) -> None:
        self._kept: deque[Snapshot] = deque()
        self._memory = Memory()

    def figures(self, snapshot: Snapshot) -> list[Figure]:
        """The figures of this moment."""
        if not self._kept or snapshot.seconds - self._kept[-1].seconds >= STEP:
            self._kept.append(snapshot)
            now = _resident()
            self._memory = Memory(now, max(now, self._memory.peak))
        while len(self._kept) > 1 and snapshot.seconds - self._kept[1].seconds >= SPAN:
            self._kept.popleft()
        since_begin = snapshot.seconds <= SPAN or self._kept[0] is snapshot
        return figures(snapshot, None if since_begin else self._kept[0], self._memory)


def _resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not tell."""
    try:
        return int(psutil.Process().memory_info().rss)
    except psutil.Error:
        return 0
