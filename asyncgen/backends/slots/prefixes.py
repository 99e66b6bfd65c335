"""Which shared beginnings are computed, which of them are in use, and which may go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from asyncgen.backends.slots.arrangement import Beginning

__all__ = ["Prefixes", "Room"]

IDLE = 4
"""Prefixes kept although no row uses them: prompts that need them may be on their way."""


@dataclass(frozen=True, slots=True)
class Room:
    """How many beginnings there may be at a time; a single one may always be there, if it has ``most`` tokens."""

    tokens: int
    """Tokens they may have together."""
    count: int | None = None
    """None: any number."""
    grain: int = 1
    """Each takes room for a multiple of so many tokens."""
    most: int | None = None
    """Tokens that a single one may have, what is longer is not shared; None: any number."""

    def holds(self, beginnings: Sequence[Sequence[int]]) -> bool:
        """Whether there is room for all of these."""
        tokens = sum(-(-len(each) // self.grain) * self.grain for each in beginnings)
        return tokens <= self.tokens and (self.count is None or len(beginnings) <= self.count)


class Prefixes:
    """Computed beginnings by their tokens, the ones used last at the end."""

    def __init__(
        self, compute: Callable[[tuple[int, ...]], Beginning], forget: Callable[[Beginning], None], room: Room
    ) -> None:
        """``forget`` is told which ones are let go."""
        self._compute, self._forget, self._room = compute, forget, room
        self._known: OrderedDict[tuple[int, ...], Beginning] = OrderedDict()
        self._uses: dict[tuple[int, ...], int] = {}
        self.hits = 0
        """Rows that found their prefix computed."""
        self.misses = 0
        """Prefixes that were computed."""

    def fits(self, tokens: tuple[int, ...]) -> bool:
        """Whether there is room for it beside those in use."""
        others = [each for each in self._uses if each != tokens]
        return not others or self._room.holds([*others, tokens])

    def use(self, tokens: tuple[int, ...]) -> Beginning:
        """The prefix, computed if need be; to be given back with ``leave``."""
        if (prefix := self._known.get(tokens)) is not None:
            self.hits += 1
        else:
            while self._idle and not self._room.holds([*self._known, tokens]):
                self._drop(self._idle[0])
            prefix = self._known[tokens] = self._compute(tokens)
            self.misses += 1
        self._known.move_to_end(tokens)
        self._uses[tokens] = self._uses.get(tokens, 0) + 1
        return prefix

    def leave(self, prefix: Beginning) -> None:
        """A row that used it has ended. Of those that nobody uses, the few used last are kept."""
        self._uses[prefix.tokens] -= 1
        if not self._uses[prefix.tokens]:
            del self._uses[prefix.tokens]
            for tokens in self._idle[:-IDLE]:
                self._drop(tokens)

    def clear(self) -> None:
        """Lets go of every prefix that nobody uses."""
        for tokens in self._idle:
            self._drop(tokens)

    def _drop(self, tokens: tuple[int, ...]) -> None:
        self._forget(self._known.pop(tokens))

    @property
    def _idle(self) -> list[tuple[int, ...]]:
        return [tokens for tokens in self._known if tokens not in self._uses]
