"""What a process holds, from ``/proc``, and whether that grows."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

__all__ = ["Growth", "Sample", "growth", "sample"]

_WARM_UP = 0.2
"""Share of a session at whose end caches are full and every thread has been there once."""
_STORY_BYTES = 9.0
"""To know repeats by: 8 bytes each, and an eighth of air in the arrays."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a process."""

    rss: int
    """Resident memory, in bytes."""
    descriptors: int
    threads: int


def sample(process: int) -> Sample | None:
    """The process now; None if it is gone."""
    place = Path("/proc") / str(process)
    try:
        pages = int((place / "statm").read_text(encoding="ascii").split()[1])
        return Sample(
            rss=pages * os.sysconf("SC_PAGE_SIZE"),
            descriptors=len(os.listdir(place / "fd")),  # noqa: PTH208  # their targets do not matter
            threads=len(os.listdir(place / "task")),  # noqa: PTH208
        )
    except (OSError, IndexError):
        return None


@dataclass(frozen=True, slots=True)
class Growth:
    """How the last third of a session differs from its first, after warming up; medians of both."""

    samples: int
    rss: float
    """In bytes, without what each story is known to cost."""
    descriptors: float
    threads: float
    rss_then: float
    """In the first third, in bytes."""
    most_descriptors: int
    most_threads: int


def growth(samples: Sequence[Sample], stories: int) -> Growth:
    """Of a session that made so many ``stories``. Raises ValueError for too few samples to tell."""
    warm = samples[int(_WARM_UP * len(samples)) :]
    third = len(warm) // 3
    if third < 3:
        raise ValueError(f"{len(samples)} samples are too few")
    first, last = warm[:third], warm[-third:]

    def grown(what: Callable[[Sample], int]) -> float:
        return median(map(what, last)) - median(map(what, first))

    between = stories * (1 - _WARM_UP) * 2 / 3  # from the middle of the first third to that of the last
    return Growth(
        samples=len(samples),
        rss=grown(lambda each: each.rss) - _STORY_BYTES * between,
        descriptors=grown(lambda each: each.descriptors),
        threads=grown(lambda each: each.threads),
        rss_then=median(each.rss for each in first),
        most_descriptors=max(each.descriptors for each in samples),
        most_threads=max(each.threads for each in samples),
    )
