"""What attention reads of slots and prompts: tensors at fixed places on the device, so that a captured pass finds them.

S slots; N pages of PAGE cells; T packed tokens; R rows of the table of shared prefixes. A page holds tokens of one row
or of one prefix. Page 0 is nobody's: what fills a shape is written there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

__all__ = ["ROWS", "TILE", "Attention", "Lanes", "Packed", "Shared"]

ROWS = 8
"""Slots of a tile: they have the same prefix, which is read once for all of them."""
TILE = 16
"""Tokens of a tile of packed prompts: they are of the same prompt."""


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """Prefixes, each in pages of its own."""

    table: Tensor
    """int32 [R, Q]: each prefix's pages in the order of its tokens; what follows them means nothing."""
    lengths: Tensor
    """int32 [R]: its tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class Lanes:
    """One token of each of S slots: all are computed, those that are not live for nothing."""

    live: Tensor
    """bool [S]: whether the slot's row goes on. Of others nothing is written, and they get zeros."""
    lengths: Tensor
    """int32 [S]: the row's own tokens that are in the cache; the one that is computed comes behind them."""
    table: Tensor
    """int32 [S, P]: each row's pages in the order of its own tokens, that of the one computed included; what follows
    them means nothing."""
    prefix: Tensor
    """int32 [S]: the row's prefix in ``shared``; -1: none."""
    shared: Shared
    tile_prefix: Tensor
    """int32 [tiles]: the prefix of each tile's slots; -1: the tile is not in use. Each slot that is live and has a
    prefix is in exactly one tile; others may be in none."""
    tile_slots: Tensor
    """int32 [tiles, ROWS]: the slots of each tile; -1: none."""


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """T tokens of one or more prompts, one prompt after another, then what fills the shape."""

    tile_start: Tensor
    """int32 [tiles]: each tile's first token, in [0, T); -1: the tile is not in use. Tiles of a prompt begin TILE
    tokens apart, so a token's place in its tile depends on nothing else."""
    tile_first: Tensor
    """int32 [tiles]: the first token of the tile's prompt."""
    tile_end: Tensor
    """int32 [tiles]: the token behind the last one of the tile's prompt."""
    pages: Tensor
    """int32 [T]: the page that each token's keys and values are written to; 0 for what fills the shape."""
    offsets: Tensor
    """int32 [T]: the cell in that page."""
    prefix: Tensor
    """int32 [1]: the prefix that all prompts have, in ``shared``; -1: none."""
    shared: Shared
    earlier: Tensor
    """int32 [P]: pages of the tokens that stand between prefix and packed ones: the beginning of a long prompt, which
    is then the only one."""
    earlier_length: Tensor
    """int32 [1]: how many these are; 0 for all but long prompts."""


class Attention(Protocol):
    """Attention of H query heads over KV key and value heads, a multiple of them fewer, of size D, in one softmax.

    What a slot or a token gets does not depend on its place among others, nor on them.
    """

    def decode(
        self, queries: Tensor, keys: Tensor, values: Tensor, pool: tuple[Tensor, Tensor], lanes: Lanes, scale: float
    ) -> Tensor:
        """Each slot's token over its prefix, its own tokens in the cache and itself; its keys and values are written.

        queries [S, H, D]; keys, values [S, KV, D]; ``pool``: a layer's keys and values [N, KV, PAGE, D]; scores are
        multiplied by ``scale``. Gives [S, H, D].
        """

    def prefill(
        self, queries: Tensor, keys: Tensor, values: Tensor, pool: tuple[Tensor, Tensor], packed: Packed, scale: float
    ) -> Tensor:
        """Each packed token over prefix, earlier tokens, and its prompt's up to itself; writes keys and values.

        queries [T, H, D]; keys, values [T, KV, D]. Gives [T, H, D]; zeros for what fills the shape.
        """
