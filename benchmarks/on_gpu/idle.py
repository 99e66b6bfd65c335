"""How much of a span of time is covered by intervals, and where the gaps are. Plain arithmetic."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Idle", "Interval", "by_name", "idle"]

LONG = 20e-6
"""Seconds from which a gap is no mere change from one kernel of a captured pass to the next."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Something that the device did; times in seconds of any one clock."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Idle:
    """Of one span: from the first interval's start to the last one's end."""

    span: float
    busy: float
    gaps: tuple[float, ...]
    """Lengths of the uncovered stretches, the longest first."""

    @property
    def share(self) -> float:
        """Of the span, uncovered."""
        return 1 - self.busy / self.span if self.span else 0.0

    def longer(self, than: float = LONG) -> float:
        """Of the span, uncovered in gaps of more than so many seconds: there the device waited for somebody."""
        return sum(gap for gap in self.gaps if gap > than) / self.span if self.span else 0.0

    def describe(self) -> dict[str, Any]:
        """For the results."""
        return {
            "span s": round(self.span, 4),
            "idle share": round(self.share, 5),
            "idle share in gaps over 20 us": round(self.longer(), 5),
            "gaps over 20 us": sum(gap > LONG for gap in self.gaps),
            "longest gaps ms": [round(1e3 * gap, 3) for gap in self.gaps[:5]],
        }


def idle(intervals: Iterable[Interval]) -> Idle:
    """The union of ``intervals``, which may overlap and come in any order."""
    ordered = sorted(intervals, key=lambda each: each.start)
    if not ordered:
        return Idle(0.0, 0.0, ())
    first, reach, gaps = ordered[0].start, ordered[0].end, []
    for each in ordered[1:]:
        if each.start > reach:
            gaps.append(each.start - reach)
        reach = max(reach, each.end)
    span = reach - first
    return Idle(span, span - sum(gaps), tuple(sorted(gaps, reverse=True)))


def by_name(intervals: Sequence[Interval], most: int = 25) -> list[dict[str, Any]]:
    """Where the time goes: names, their share of all that was done, calls and mean time, the longest together first."""
    seconds: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for each in intervals:
        seconds[each.name] += each.end - each.start
        calls[each.name] += 1
    whole = sum(seconds.values()) or 1.0
    names = sorted(seconds, key=lambda name: -seconds[name])[:most]
    return [
        {
            "name": name[:160],
            "share": round(seconds[name] / whole, 4),
            "calls": calls[name],
            "mean us": round(1e6 * seconds[name] / calls[name], 2),
        }
        for name in names
    ]
