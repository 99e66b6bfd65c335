"""How many slots there are and how much memory they get, found before anything is captured.

What forward passes need beside weights and cache is measured, at the very shapes that will be used; the rest is
arithmetic. So nothing is allocated later, and running out of memory cannot happen in mid-run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from asyncgen.backends.slots.cache import PAGE, LayerShape, pages_for
from asyncgen.backends.slots.gpu.tickets import Widths
from asyncgen.backends.slots.sizing import AUTO_GPU, OWN_GUESS

__all__ = ["Memory", "Wanted", "divided", "fewer", "page_bytes", "widths_for"]

USABLE = 0.94
"""Share of the free memory that is used; the rest is for what the driver and fragmentation take."""
PREFIX_TOKENS, PREFIX_SHARE = 32_768, 0.15
"""Room for shared beginnings: so many tokens, but at most so large a share of the memory that is left for the cache."""
PREFIXES = 32
"""Shared beginnings at a time."""
TOKENS_A_SLOT = 4
"""Packed prompt tokens for each slot: a refill is a sixteenth of the slots, at about 64 tokens each."""
FEWEST_TOKENS, MOST_TOKENS = 256, 2048
TOKENS_A_ROW = 32
"""Packed prompt tokens for each row that may begin with them: shorter prompts come in more groups."""
MOST_PAGES = 2048
"""Pages of a row at most: 131,072 tokens. Tables are as wide as this for every slot."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the run asks for."""

    rows: int | Literal["auto"]
    max_new_tokens: int
    context_length: int

    @property
    def slots(self) -> int:
        """Slots that are asked for."""
        return AUTO_GPU if self.rows == "auto" else self.rows

    @property
    def row_pages(self) -> int:
        """Pages of the longest row that is expected."""
        return pages_for(min(self.context_length, OWN_GUESS + self.max_new_tokens))


@dataclass(frozen=True, slots=True)
class Memory:
    """What there is, and how it is used, in bytes."""

    free: int
    """Before anything of this was allocated."""
    state: int
    """Inboxes, the slots' state, sampling."""
    later: int
    """What is allocated when a row with a penalty comes, if most are sampled without; no part of what is planned."""
    activations: int
    """The most that a pass needs. Twice as much is set aside: captured passes keep theirs, and others are called to be
    captured."""
    page: int
    pages: int = 0
    prefix_pages: int = 0

    @property
    def planned(self) -> int:
        """What will have been allocated when everything is captured."""
        return self.state + 2 * self.activations + (1 + self.pages + self.prefix_pages) * self.page


def page_bytes(layers: Sequence[LayerShape], item_bytes: int) -> int:
    """Bytes of a page, in all layers."""
    return PAGE * sum(layer.bytes_per_token(item_bytes) for layer in layers)


def widths_for(slots: int, wanted: Wanted) -> Widths:
    """The shapes that go with so many slots; a row, or a prefix, may be as long as the context."""
    tokens = FEWEST_TOKENS
    while tokens < min(MOST_TOKENS, TOKENS_A_SLOT * slots):
        tokens *= 2
    longest = pages_for(wanted.context_length)
    return Widths(
        tokens=tokens,
        rows=min(slots, tokens // TOKENS_A_ROW),
        pages=min(longest, MOST_PAGES),
        prefix_pages=min(longest, MOST_PAGES),
        slots=slots,
        prefixes=PREFIXES,
    )


def divided(memory: Memory, wanted: Wanted, slots: int) -> Memory:
    """Room for rows and prefixes in what is left; pages are 0 if not even ``slots`` rows fit as they are expected."""
    left = int(memory.free * USABLE) - memory.state - memory.later - 2 * memory.activations
    affordable = max(0, left // memory.page - 1)
    prefix_pages = min(PREFIX_TOKENS // PAGE, int(affordable * PREFIX_SHARE))
    rows = affordable - prefix_pages
    if slots * wanted.row_pages > rows:
        return memory
    longest = min(rows, pages_for(wanted.context_length))
    pages = max(slots * wanted.row_pages, longest)
    return replace(memory, pages=pages, prefix_pages=prefix_pages)


def fewer(memory: Memory, wanted: Wanted, slots: int) -> int:
    """Slots to try next, where so many do not fit: as many as memory holds, if they need no more than their share of
    what these need; 0 if not even one row fits.
    """
    left = int(memory.free * USABLE) - memory.page
    each = (memory.state + memory.later + 2 * memory.activations) / slots + wanted.row_pages * memory.page / (
        1 - PREFIX_SHARE
    )
    return min(slots - 1, int(left / each))
