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

    def __init__(self, compute: Callable[[tuple[int, ...]], Prefix]) -> None:
        self._compute = compute
        self._known: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()
        self._uses: dict[int, int] = {}
        self.hits = 0
        """Rows that found their prefix computed."""
        self.misses = 0
        """Prefixes that were computed."""

    def use(self, tokens: tuple[int, ...]) -> Prefix:
        """The prefix, computed if need be; to be given back with ``leave``."""
        prefix = self._known.get(tokens)
        if prefix is None:
            prefix = self._known[tokens] = self._compute(tokens)
            self.misses += 1
        else:
            self.hits += 1
        self._known.move_to_end(tokens)
        self._uses[id(prefix)] = self._uses.get(id(prefix), 0) + 1
        return prefix

    def leave(self, prefix: Prefix) -> None:
        """A row that used it has ended. Of those that nobody uses, the few used last are kept."""
        self._uses[id(prefix)] -= 1
        idle = [tokens for tokens, each in self._known.items() if not self._uses.get(id(each))]
        for tokens in idle[: max(0, len(idle) - IDLE)]:
            self._uses.pop(id(self._known.pop(tokens)), None)

    def clear(self) -> None:
        """Lets go of every prefix that nobody uses."""
        for tokens in [tokens for tokens, each in self._known.items() if not self._uses.get(id(each))]:
            self._uses.pop(id(self._known.pop(tokens)), None)
