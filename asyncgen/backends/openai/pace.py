"""How many requests a server may have of us at once: as many as it stands. Decides, and does nothing.

The limit grows by one with each success, as long as it was what held us back, and from the first overload on by one a
round (additive increase); an overload halves it (multiplicative decrease), and what was begun before that says nothing
more. This is TCP's congestion avoidance (Jacobson 1988; RFC 5681), with requests in the place of segments.
"""

from __future__ import annotations

__all__ = ["FIRST", "Pace"]

FIRST = 4
"""The limit at the beginning."""


class Pace:
    """Counts the tries in flight, and says how many there may be: at least 1, at most ``most``."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(min(FIRST, most))
        self._unhurt = True
        self._begun = 0
        self._cut = 0
        """The number of the last try that was begun when the limit was cut."""
        self.in_flight = 0

    @property
    def limit(self) -> int:
        """Tries that may be in flight."""
        return int(self._limit)

    def begin(self) -> int:
        """Counts a try; its number, by which ``overloaded`` knows it."""
        self.in_flight += 1
        self._begun += 1
        return self._begun

    def succeeded(self) -> None:
        """A try that is still in flight got an answer."""
        if self.in_flight >= self.limit:
            self._limit = min(self._most, self._limit + (1.0 if self._unhurt else 1.0 / self._limit))

    def overloaded(self, number: int) -> None:
        """The try of this number met a server that had too much to do, or did not answer."""
        if number > self._cut:
            self._limit = max(1.0, self._limit / 2)
            self._cut = self._begun
            self._unhurt = False

    def end(self) -> None:
        """A try is over, whatever came of it."""
        self.in_flight -= 1
