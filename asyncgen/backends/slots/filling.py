"""Up to how many rows a product is filled, so that no row's bits depend on how many others there are.

Two things would make them: products of fewer than eight rows, and torch's elementwise loops, which compute whole
vectors with other code than the elements that are left over, and round otherwise there (silu, gelu, sigmoid). Elements
are left over at the end of each thread's share. So there are as many rows that nothing is ever left over, neither with
one thread nor with all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

__all__ = ["LANES", "MOST", "SHARE", "SMALLEST", "VECTOR", "Filling"]

LANES = 16
"""Rows are a multiple of this: products of fewer than eight round differently."""
VECTOR = 32
"""Elements that a loop takes at a time, at most: two vectors of 512 bits."""
SHARE, SMALLEST = 0x8000, 0x4000
"""Elements from which on a second thread is used: in most loops one more for each ``SHARE``, in some all of them."""
MOST = 128
"""Rows added at most. Where that does not do (some odd numbers of threads), last bits may differ."""


class Filling:
    """For a model whose layers are so many numbers wide, and at most so many threads."""

    def __init__(self, widths: Iterable[int], threads: int) -> None:
        self._widths, self._threads = frozenset(widths), threads

    @classmethod
    def of(cls, model: Any, vocabulary: int, threads: int) -> Filling:
        """For this model: an activation is as wide as a product before or behind it."""
        layers = [module for module in model.modules() if not isinstance(module, nn.Embedding)]
        weights = [weight for layer in layers for weight in layer.parameters(recurse=False) if weight.dim() == 2]
        return cls({width for weight in weights for width in weight.shape if width != vocabulary}, threads)

    def up(self, rows: int) -> int:
        """How many rows are computed for ``rows``."""
        least = -(-rows // LANES) * LANES
        fitting = (each for each in range(least, least + MOST + 1, LANES) if self._fits(each))
        return next(fitting, least)

    def _fits(self, rows: int) -> bool:
        return all(
            -(-rows * width // shares) % VECTOR == 0 for width in self._widths for shares in self._shares(rows * width)
        )

    def _shares(self, elements: int) -> set[int]:
        """Into how many parts so many elements may be divided."""
        if elements <= SMALLEST:
            return {1}
        return {1, self._threads, min(self._threads, -(-elements // SHARE))}
