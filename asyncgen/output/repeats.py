"""``Seen``: which 64-bit hashes have come by, in 8 bytes each; ``seen_stories``: what to fill it from on a resume.

A Python set needs some 60 bytes a number and stops the program while it grows. Here the top bits of a hash choose one
of 4096 sorted arrays and bisection finds its place in there: with a hundred million hashes each array holds 200 kB, and
moving half of that is what the longest ``add`` costs.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from asyncgen.output.lines import Foreign, Garbled, read_line
from asyncgen.output.recovery import damaged
from asyncgen.records import Story

__all__ = ["Seen", "seen_stories"]

_BITS = 12


class Seen:
    """A set of 64-bit hashes that only grows. Hashes must be uniform for the arrays to be equally long."""

    def __init__(self) -> None:
        self._shards = [array("Q") for _ in range(1 << _BITS)]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, number: int) -> bool:
        shard = self._shards[number >> (64 - _BITS)]
        place = bisect_left(shard, number)
        return place < len(shard) and shard[place] == number

    def add(self, number: int) -> bool:
        """Adds ``number``, in [0, 2**64); whether it is new."""
        shard = self._shards[number >> (64 - _BITS)]
        place = bisect_left(shard, number)
        if place < len(shard) and shard[place] == number:
            return False
        shard.insert(place, number)
        self._count += 1
        return True


def seen_stories(path: Path, stories: int, seed: int) -> Iterator[str]:
    """The content of the first ``stories`` stories in ``path``, in order, read in blocks.

    Reads all of them, so damage anywhere is found: OutputDamaged names the line.
    """
    if not stories:
        return
    index = -1
    with path.open("rb") as file:
        for number, line in enumerate(islice(file, stories), 1):
            try:
                record, place = read_line(line, Story, seed)
            except (Garbled, Foreign) as error:
                damaged(path, number, str(error))
            if place.accepted != number or place.index <= index:
                damaged(path, number, f"it says that it is story {place.accepted}, index {place.index}")
            index = place.index
            yield record.content
