"""How many slots and pages there are, decided once, before anything is generated. Plain arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from asyncgen.backends.slots.cache import PAGE, LayerShape, pages_for

__all__ = ["Size", "size"]

AUTO_CPU, AUTO_GPU = 128, 512
OWN_GUESS = 256
"""Tokens behind the shared prefix that a prompt is expected to have at most; a longer one reserves more."""
USABLE, FOR_PREFIXES = 0.6, 0.15
"""Shares of the free memory that rows and prefixes may take; activations and everybody else have the rest."""


@dataclass(frozen=True, slots=True)
class Size:
    """What is allocated."""

    slots: int
    pages: int
    prefix_tokens: int
    """Tokens that the shared beginnings in use may have together."""
    wanted: int
    """Slots that were asked for; more than ``slots`` if memory is short."""

    def halved(self) -> Size:
        """Half of the slots and of everything else."""
        slots = max(1, self.slots // 2)
        return Size(slots, 1 + (self.pages - 1) * slots // self.slots, self.prefix_tokens // 2, self.wanted)


def size(
    layers: Sequence[LayerShape],
    *,
    item_bytes: int,
    rows: int | Literal["auto"],
    max_new_tokens: int,
    context_length: int,
    free_bytes: int,
    gpu: bool,
) -> Size:
    """The slots asked for, or as many as fit into memory (0: not even one), and pages for the longest rows that are
    expected in all of them.

    A row of the whole context fits in any case, if memory allows it at all.
    """
    per_page = PAGE * sum(layer.bytes_per_token(item_bytes) for layer in layers)
    affordable = int(free_bytes * USABLE) // per_page
    row = pages_for(min(context_length, OWN_GUESS + max_new_tokens))
    wanted = (AUTO_GPU if gpu else AUTO_CPU) if rows == "auto" else rows
    slots = min(wanted, affordable // row)
    longest = min(affordable, pages_for(context_length))
    prefix_tokens = int(free_bytes * FOR_PREFIXES) * PAGE // per_page
    return Size(slots, max(slots * row, longest) + 1, prefix_tokens, wanted)
