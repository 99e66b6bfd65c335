"""Which item of which source an index is: arithmetic, and no walk from the beginning.

The integer weights make one fixed cycle of places, in which a source of weight w stands w times, evenly spread: its
k-th place is at (2k + 1) / 2w of the cycle, and of sources that meet there the first goes first. Index after index
takes place after place, and each place the next item of its source.

A source that ended at an index gives its places to the rest in cycle order: from that index on its places are left out
of the cycle, which otherwise goes on where it stood. So an index is a function of the weights and of the ends at or
before it; later ends change nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import NamedTuple

__all__ = ["End", "Mixing", "Place"]


class Place(NamedTuple):
    """What an index is made from."""

    source: int
    """Number of the source, from 0."""
    position: int
    """Item of that source, from 0."""


@dataclass(frozen=True, slots=True)
class End:
    """A source has no item for the place that it has at ``index``: from there on its places belong to the rest."""

    source: int
    index: int


@dataclass(frozen=True, slots=True)
class _Segment:
    """The indices from ``start`` to the next end."""

    start: int
    cycle: tuple[int, ...]
    """Source of each place; ``start`` has the first one."""
    ranks: tuple[int, ...]
    """Of each place: places of the same source before it in the cycle."""
    shares: Counter[int]
    """Places of each source in the cycle."""
    begun: tuple[int, ...]
    """Items of each source before ``start``."""

    @classmethod
    def of(cls, start: int, cycle: Sequence[int], begun: Iterable[int]) -> _Segment:
        shares: Counter[int] = Counter()
        ranks = []
        for source in cycle:
            ranks.append(shares[source])
            shares[source] += 1
        return cls(start, tuple(cycle), tuple(ranks), shares, tuple(begun))

    def place(self, index: int) -> Place:
        rounds, at = divmod(index - self.start, len(self.cycle))
        source = self.cycle[at]
        return Place(source, self.begun[source] + rounds * self.shares[source] + self.ranks[at])

    def items(self, index: int) -> list[int]:
        """Items of each source before ``index``."""
        rounds, at = divmod(index - self.start, len(self.cycle))
        part = Counter(self.cycle[:at])
        return [begun + rounds * self.shares[s] + part[s] for s, begun in enumerate(self.begun)]


class Mixing:
    """The places of a mix. Grows by ``end`` only; what it said of indices before an end stays true."""

    def __init__(self, weights: Sequence[int], ends: Iterable[End] = ()) -> None:
        common = gcd(*weights)
        shares = [weight // common for weight in weights]
        places = [((2 * k + 1) / share, source) for source, share in enumerate(shares) for k in range(share)]
        self._segments = [_Segment.of(0, [source for _, source in sorted(places)], [0] * len(weights))]
        self._ends: list[End] = []
        for each in ends:
            self.end(each.source, each.index)

    @property
    def ends(self) -> tuple[End, ...]:
        """The ends so far, in their order."""
        return tuple(self._ends)

    @property
    def alive(self) -> frozenset[int]:
        """The sources that have not ended."""
        return frozenset(self._segments[-1].cycle)

    def place(self, index: int) -> Place:
        """The source of ``index`` >= 0 and its position in it."""
        return self._segment(index).place(index)

    def items(self, index: int) -> list[int]:
        """How many items of each source stand before ``index``: the position at which each goes on."""
        return self._segment(index).items(index)

    def index_of(self, source: int, position: int) -> int:
        """The index of a position of a source that has not ended; it must be at or after the last end."""
        last = self._segments[-1]
        rounds, rank = divmod(position - last.begun[source], last.shares[source])
        at = next(at for at, each in enumerate(last.cycle) if each == source and last.ranks[at] == rank)
        return last.start + rounds * len(last.cycle) + at

    def end(self, source: int, index: int) -> None:
        """Gives the places of ``source`` from ``index`` on to the rest.

        Raises ValueError if nobody would be left, if it has ended already, or for an index before an earlier end.
        """
        last = self._segments[-1]
        if source not in last.cycle or len(last.shares) == 1 or index < last.start:
            raise ValueError(f"source {source} of {set(self.alive)} cannot end at index {index} after {self._ends}")
        at = (index - last.start) % len(last.cycle)
        rest = [each for each in (*last.cycle[at:], *last.cycle[:at]) if each != source]
        self._segments.append(_Segment.of(index, rest, last.items(index)))
        self._ends.append(End(source, index))

    def _segment(self, index: int) -> _Segment:
        last = self._segments[-1]
        if index >= last.start:
            return last
        return self._segments[bisect_right(self._segments, index, key=lambda segment: segment.start) - 1]
