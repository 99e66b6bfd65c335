"""What the engine's thread asks of a decoder: the plain one, or that with fixed shapes (``gpu``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch

from asyncgen.backends.decoding import Row
from asyncgen.backends.slots.arrangement import Seat

__all__ = ["Settle", "SlotDecoder", "nobody"]

Settle = Callable[[Row, int, bool, float | None], object]
"""``settle(row, token, broken, logprob)`` is told each new token, and ends the row if it is the last one; ``broken`` if
there is none, for the logits were not finite; ``logprob`` is None unless the row asks for it."""


def nobody(row: Row, token: int, broken: bool, logprob: float | None) -> None:
    """Is told of tokens where nobody else is."""


class SlotDecoder(Protocol):
    """S slots of one model: rows go in, steps are made, rows that have ended come out."""

    device: torch.device
    slots: int
    torn: bool
    """Whether something has failed in the middle: there is no way on but ``reset``."""
    settle: Settle

    @property
    def seats(self) -> Iterable[Seat]:
        """The rows that run."""

    @property
    def live(self) -> int:
        """Slots with a row."""

    @property
    def room(self) -> int:
        """Pages that rows can still have."""

    @property
    def most_pages(self) -> int:
        """Pages that a single row can have."""

    @property
    def together(self) -> int:
        """Prompt tokens computed at a time; a longer prompt is computed alone."""

    @property
    def most_rows(self) -> int:
        """Rows that begin at a time."""

    def prefix(self, tokens: tuple[int, ...]) -> Any:
        """Computes a shared beginning, which has its ``tokens``. There is room for it."""

    def forget(self, prefix: Any) -> None:
        """Lets go of a shared beginning that no row uses."""

    def admit(self, seats: Sequence[Seat]) -> list[Seat]:
        """Begins rows, which have the same prefix or none; there are slots and pages. Gives those that have ended with
        it. If it fails nothing has changed.
        """

    def step(self) -> list[Seat]:
        """Goes on with all rows, of which there is one at least. Gives those that have ended; their slots are free."""

    def remove(self, seat: Seat) -> None:
        """Frees a row's slot."""

    def reset(self) -> None:
        """Takes all rows away, whatever state they are in; shared beginnings stay."""
