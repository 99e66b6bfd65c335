"""Which shared beginnings are computed, which of them are in use, and which may go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from asyncgen.backends.slots.passes import Prefix

__all__ = ["Prefixes"]

IDLE = 4
"""Prefixes kept although no row uses them: prompts that need them may be on their way."""


class Prefixes:
    """Computed beginnings by their tokens, the ones used last at the end."""

    def __init__(self, compute: Callable[[tuple[int, ...]], Prefix], limit: int) -> None:
        """``limit``: tokens that the beginnings may have together, unless a single one has more."""
        self._compute, self._limit = compute, limit
        self._known: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()
        self._uses: dict[tuple[int, ...], int] = {}
        self.hits = 0
        """Rows that found their prefix computed."""
        self.misses = 0
        """Prefixes that were computed."""

    def fits(self, tokens: tuple[int, ...]) -> bool:
        """Whether there is room for it beside those in use."""
        used = sum(len(each) for each in self._uses if each != tokens)
        return not used or used + len(tokens) <= self._limit

    def use(self, tokens: tuple[int, ...]) -> Prefix:
        """The prefix, computed if need be; to be given back with ``leave``."""
        if (prefix := self._known.get(tokens)) is not None:
            self.hits += 1
        else:
            while self._idle and sum(map(len, self._known)) + len(tokens) > self._limit:
                del self._known[self._idle[0]]
            prefix = self._known[tokens] = self._compute(tokens)
            self.misses += 1
        self._known.move_to_end(tokens)
        self._uses[tokens] = self._uses.get(tokens, 0) + 1
        return prefix

    def leave(self, prefix: Prefix) -> None:
        """A row that used it has ended. Of those that nobody uses, the few used last are kept."""
        self._uses[prefix.tokens] -= 1
        if not self._uses[prefix.tokens]:
            del self._uses[prefix.tokens]
            for tokens in self._idle[:-IDLE]:
                del self._known[tokens]

    def clear(self) -> None:
        """Lets go of every prefix that nobody uses."""
        for tokens in self._idle:
            del self._known[tokens]

    @property
    def _idle(self) -> list[tuple[int, ...]]:
        return [tokens for tokens in self._known if tokens not in self._uses]
