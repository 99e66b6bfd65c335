"""Where keys and values live: one pool of pages, allocated once, handed out to rows page by page.

A page holds ``PAGE`` tokens of one row, in every layer at the same number. Pages are outermost in memory, so the pages
in use are one contiguous region at the pool's start, over which a step computes without gathering anything: the lowest
free page is taken first, and ``compact`` moves the highest ones down when too many holes are left.

A row reserves, when it is admitted, as many pages as it may ever need, so no row runs out of them later; it takes them
one by one, as it grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import torch
from torch import Tensor

__all__ = ["ALIGNED", "PAGE", "Cache", "LayerShape", "Pages", "pages_for"]

PAGE = 64
"""Tokens of a page."""

ALIGNED = 4
"""Sizes of heads are filled up to a multiple of this with zeros: where numbers are not aligned, products depend on the
place of a matrix in memory."""

NEUTRAL = -1e30
"""A score that no softmax notices. Not -inf, of which differences are NaN."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One attention layer, as the probe met it."""

    heads: int
    kv_heads: int
    key_size: int
    value_size: int

    @property
    def group(self) -> int:
        """Query heads of a key and value head."""
        return self.heads // self.kv_heads

    @property
    def aligned(self) -> LayerShape:
        """As it is computed."""
        sizes = (-(-size // ALIGNED) * ALIGNED for size in (self.key_size, self.value_size))
        return LayerShape(self.heads, self.kv_heads, *sizes)

    def bytes_per_token(self, item_bytes: int) -> int:
        """Bytes of a token's keys and values."""
        return self.kv_heads * (self.key_size + self.value_size) * item_bytes


def pages_for(own: int, new: int = 1) -> int:
    """Pages that hold a row's own prompt tokens and ``new`` generated ones, of which the last is never written."""
    return -(-(own + new - 1) // PAGE)


class Pages:
    """Which pages are whose. Page 0 is nobody's: rows that are only there to fill a shape write to it."""

    def __init__(self, count: int) -> None:
        """``count`` pages in all, the one of nobody included; at least 2."""
        self.count = count
        self.reserved = 0
        self.used = 1
        """Pages in use."""
        self.region = 1
        """All pages in use are below this one."""
        self.owners = [-1] * count
        """The slot that each page belongs to; -1: none."""
        self._holes: list[int] = []

    @property
    def room(self) -> int:
        """Pages that can still be reserved."""
        return self.count - 1 - self.reserved

    def reserve(self, pages: int) -> None:
        """Sets pages aside for a row."""
        self.reserved += pages

    def take(self, slot: int) -> int:
        """The lowest free page, out of what was reserved."""
        if self._holes:
            page = heappop(self._holes)
        else:
            page, self.region = self.region, self.region + 1
        self.used += 1
        self.owners[page] = slot
        return page

    def release(self, pages: Sequence[int], reserved: int) -> None:
        """Takes back a row's pages and its reservation."""
        self.reserved -= reserved
        self.used -= len(pages)
        for page in pages:
            self.owners[page] = -1
            heappush(self._holes, page)
        self._shrink()

    def moves(self, waste: float) -> list[tuple[int, int]]:
        """Moves (from the highest page in use, to the lowest hole) until at most a share ``waste`` of the region is
        holes. They are recorded as done.
        """
        moves = []
        while self._holes and self.used < (1 - waste) * self.region:
            source, target = self.region - 1, heappop(self._holes)
            self.owners[target], self.owners[source] = self.owners[source], -1
            heappush(self._holes, source)
            moves.append((source, target))
            self._shrink()
        return moves

    def _shrink(self) -> None:
        """Holes at the region's end are no holes."""
        while self.region > 1 and self.owners[self.region - 1] < 0:
            self.region -= 1
        if self._holes and max(self._holes) >= self.region:
            self._holes = sorted(page for page in self._holes if page < self.region)


class Cache:
    """The pool's tensors: keys and values [pages, kv_heads, PAGE, size] of each layer, and which cells are valid.

    Cells that a row has not written yet hold zeros, so nothing that was there before can reach it.
    """

    def __init__(self, layers: Sequence[LayerShape], pages: int, dtype: torch.dtype, device: torch.device) -> None:
        def pool(layer: LayerShape, size: int) -> Tensor:
            return torch.empty((pages, layer.kv_heads, PAGE, size), dtype=dtype, device=device)

        self.pages = Pages(pages)
        self.keys = [pool(layer, layer.key_size) for layer in layers]
        self.values = [pool(layer, layer.value_size) for layer in layers]
        self.bias = torch.zeros((pages, 1, PAGE), dtype=torch.float32, device=device)
        """Added to scores: 0 for cells that are written, ``NEUTRAL`` for those that are not."""
        self.owners = torch.full((pages,), -1, dtype=torch.int64, device=device)
        self.open([0])
        self.bias[0].zero_()

    def take(self, slot: int) -> int:
        """A fresh page for ``slot``."""
        page = self.pages.take(slot)
        try:
            self.owners[page] = slot
            self.open([page])
        except BaseException:
            self.pages.release([page], 0)
            raise
        return page

    def release(self, pages: Sequence[int], reserved: int) -> None:
        """Takes back a row's pages and its reservation."""
        self.pages.release(pages, reserved)
        self.owners[list(pages)] = -1

    def reset(self) -> None:
        """Takes all pages back."""
        self.pages = Pages(self.pages.count)
        self.owners.fill_(-1)

    def open(self, pages: Sequence[int]) -> None:
        """Empties pages."""
        for page in pages:
            for pool in (*self.keys, *self.values):
                pool[page].zero_()
            self.bias[page].fill_(NEUTRAL)

    def compact(self, waste: float) -> list[tuple[int, int]]:
        """See ``Pages.moves``; contents move along."""
        moves = self.pages.moves(waste)
        for source, target in moves:
            for pool in (*self.keys, *self.values, self.bias, self.owners):
                pool[target] = pool[source]
            self.owners[source] = -1
        return moves

    def write(self, layer: int, pages: Tensor, offsets: Tensor, keys: Tensor, values: Tensor) -> None:
        """Writes tokens [T, kv_heads, size] to cells (pages [T], offsets [T])."""
        self.keys[layer][pages, :, offsets] = keys
        self.values[layer][pages, :, offsets] = values
