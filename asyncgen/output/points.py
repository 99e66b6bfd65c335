"""Named places at which a test may end the process: ``at(name)`` does nothing, unless a test's own program put
something else in its place. Nothing in asyncgen ever does.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["POINTS", "Points", "points"]

POINTS = (
    "locked",
    "recovered",
    "stories cut",
    "rejected cut",
    "opened",
    "stories appended",
    "rejected appended",
    "stories synced",
    "rejected synced",
    "manifest written",
    "manifest synced",
    "manifest replaced",
    "manifest claims nothing",
    "moved aside",
)


class Points:
    """Holds what happens at each of ``POINTS``."""

    def __init__(self) -> None:
        self.at: Callable[[str], object] = str


points = Points()
