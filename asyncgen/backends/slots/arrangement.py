"""Which slots a step computes: from one change of the rows to the next, the same tensors serve every step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from asyncgen.backends.decoding import Row
from asyncgen.backends.sampling_parameters import Needs
from asyncgen.backends.slots.cache import PAGE, pages_for
from asyncgen.backends.slots.filling import LANES, Filling
from asyncgen.backends.slots.passes import Prefix
from asyncgen.records import Sampling

__all__ = ["Arrangement", "Beginning", "Seat"]


class Beginning(Protocol):
    """A shared prefix, as a decoder has computed it."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens it is computed of."""


@dataclass(slots=True, eq=False)
class Seat:
    """A row and its slot."""

    row: Row
    own: tuple[int, ...]
    """The prompt's tokens behind the prefix."""
    prefix: Beginning | None
    sampling: Sampling
    slot: int = -1
    length: int = 0
    """Tokens in the cache."""
    pages: list[int] = field(default_factory=list)

    @property
    def pages_needed(self) -> int:
        """Pages it may need in the end."""
        return pages_for(len(self.own), self.row.prompt.max_new_tokens)

    def pages_of_own(self) -> list[int]:
        """The page of each of the prompt's own tokens."""
        return [self.pages[token // PAGE] for token in range(len(self.own))]


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Lanes and whose they are. The first ones have a row, the rest fill a shape."""

    seats: tuple[Seat, ...]
    """The rows, in the order of their slots: lane i is that of seat i."""
    lanes: Tensor
    """int64 [M]: the slot of each lane."""
    lane_of: Tensor
    """int64 [size + 1]: the lane of each slot; 0 for those that have none, and for slot -1."""
    prefixes: tuple[tuple[Prefix, Tensor | None], ...]
    """Each prefix in use, with its lanes (int64, filled up by repeating one); None: all rows have it."""
    needs: Needs

    @classmethod
    def of(cls, seats: Iterable[Seat], filling: Filling, size: int, slots: int, device: torch.device) -> Arrangement:
        """The arrangement of these rows, at least one; of ``size`` slots those from ``slots`` on are never a row's."""
        order = tuple(sorted(seats, key=lambda seat: seat.slot))
        numbers = [seat.slot for seat in order]
        lanes = torch.tensor([*numbers, *range(slots, slots + filling.up(len(order)) - len(order))], device=device)
        lane_of = torch.zeros(size + 1, dtype=torch.int64, device=device)
        lane_of[lanes] = torch.arange(len(lanes), device=device)
        members: dict[int, tuple[Prefix, list[int]]] = {}
        for lane, seat in enumerate(order):
            if isinstance(seat.prefix, Prefix):
                members.setdefault(id(seat.prefix), (seat.prefix, []))[1].append(lane)
        prefixes: list[tuple[Prefix, Tensor | None]] = []
        for prefix, places in members.values():
            filled = places + places[:1] * (-len(places) % LANES)
            everybody = len(places) == len(order)
            prefixes.append((prefix, None if everybody else torch.tensor(filled, device=device)))
        return cls(order, lanes, lane_of, tuple(prefixes), Needs.of([seat.sampling for seat in order]))
