"""Attention by kernels of our own: two launches for a step's layer, one for that of prompts.

Triton compiles a kernel when it first meets a model's shapes, so each has to be called once before it is captured. What
is chosen here, how many warps and how large a block, follows from shapes and number format alone, and never from a
measurement: the choice decides the order of sums, and a row's bits are to be the same in every run.
"""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from asyncgen.backends.slots.cache import PAGE
from asyncgen.backends.slots.gpu import kernels
from asyncgen.backends.slots.gpu.lanes import ROWS, TILE, Lanes, Packed

__all__ = ["TritonAttention"]

TILE_WARPS = 4
"""Warps of a program that computes a tile."""
LARGE_TILE_WARPS = 8
"""The same where its results take too many registers for so few."""
OWN_WARPS = 4
PREFIX_STAGES = 3
OWN_STAGES = 2
PREFILL_STAGES = 3
"""Blocks of keys and values that a program has under way at a time."""
BLOCK_BYTES = 16 << 10
"""Most bytes of a block's keys; a page is one block where it is no larger."""
QUERY_BYTES = 32 << 10
"""Most bytes of the queries of a program that computes a tile."""
MOST_ROWS = 128
"""Most rows of such a program: a group with more query heads than fit is computed in parts."""
MOST_FLOAT32_ROWS = 16
"""The same in float32, whose products are no business of tensor cores: each is written out, and takes registers."""

_LEAST = 16
"""Rows and columns that a product has at least."""


class TritonAttention:
    """``Attention`` on a CUDA device: heads of any size that is a multiple of 4, groups of any size.

    Keys and values are of one number format, float32, bfloat16 or float16, and so is the pool; scores, exponentials and
    sums are float32, and products of float32 are not shortened. Tokens of queries, keys and values may lie apart, as in
    slices of one fused projection; what a token has is copied where it is not contiguous. There is no wait for the
    device here, so both can be captured.
    """

    def decode(
        self, queries: Tensor, keys: Tensor, values: Tensor, pool: tuple[Tensor, Tensor], lanes: Lanes, scale: float
    ) -> Tensor:
        """See ``Attention``."""
        queries, keys, values = _whole(queries), _whole(keys), _whole(values)
        slots, heads, size = queries.shape
        kv_heads = keys.shape[1]
        group = heads // kv_heads
        width, block = _sizes(size, queries.dtype)
        out = queries.new_empty((slots, heads, size))
        prefix_out = queries.new_empty((slots, heads, size), dtype=torch.float32)
        prefix_lse = queries.new_empty((slots, heads), dtype=torch.float32)
        tiles = lanes.tile_prefix.shape[0]
        if tiles:
            taken, parts = _parts(group, ROWS, width, queries.dtype)
            kernels.decode_prefix[(tiles, kv_heads * parts)](
                queries,
                *pool,
                prefix_out,
                prefix_lse,
                lanes.tile_prefix,
                lanes.tile_slots,
                lanes.shared.table,
                lanes.shared.lengths,
                queries.stride(0),
                _page_stride(pool),
                lanes.shared.table.stride(0),
                scale * math.log2(math.e),
                group=group,
                heads=taken,
                parts=parts,
                slots=ROWS,
                rows=max(_LEAST, ROWS * taken),
                page=PAGE,
                block=block,
                size=size,
                width=width,
                num_warps=_warps(ROWS * taken, width),
                num_stages=PREFIX_STAGES,
            )
        kernels.decode_own[(slots, kv_heads)](
            queries,
            keys,
            values,
            *pool,
            out,
            prefix_out,
            prefix_lse,
            lanes.live,
            lanes.lengths,
            lanes.table,
            lanes.prefix,
            queries.stride(0),
            keys.stride(0),
            values.stride(0),
            _page_stride(pool),
            lanes.table.stride(0),
            scale * math.log2(math.e),
            group=group,
            rows=max(_LEAST, triton.next_power_of_2(group)),
            page=PAGE,
            block=block,
            size=size,
            width=width,
            num_warps=OWN_WARPS,
            num_stages=OWN_STAGES,
        )
        return out

    def prefill(
        self, queries: Tensor, keys: Tensor, values: Tensor, pool: tuple[Tensor, Tensor], packed: Packed, scale: float
    ) -> Tensor:
        """See ``Attention``."""
        queries, keys, values = _whole(queries), _whole(keys), _whole(values)
        heads, size = queries.shape[1:]
        kv_heads = keys.shape[1]
        group = heads // kv_heads
        width, block = _sizes(size, queries.dtype)
        out = queries.new_zeros(queries.shape)
        tiles = packed.tile_start.shape[0]
        taken, parts = _parts(group, TILE, width, queries.dtype)
        kernels.prefill[(tiles, kv_heads * parts)](
            queries,
            keys,
            values,
            *pool,
            out,
            packed.tile_start,
            packed.tile_first,
            packed.tile_end,
            packed.pages,
            packed.offsets,
            packed.prefix,
            packed.shared.table,
            packed.shared.lengths,
            packed.earlier,
            packed.earlier_length,
            queries.stride(0),
            keys.stride(0),
            values.stride(0),
            _page_stride(pool),
            packed.shared.table.stride(0),
            scale * math.log2(math.e),
            group=group,
            heads=taken,
            parts=parts,
            tokens=TILE,
            rows=TILE * taken,
            page=PAGE,
            block=block,
            size=size,
            width=width,
            num_warps=_warps(TILE * taken, width),
            num_stages=PREFILL_STAGES,
        )
        return out


def _sizes(size: int, dtype: torch.dtype) -> tuple[int, int]:
    """The width of a head as it is computed, and the keys of a block, a power of two that divides a page."""
    width = max(_LEAST, triton.next_power_of_2(size))
    return width, max(_LEAST, min(PAGE, BLOCK_BYTES // (width * dtype.itemsize)))


def _parts(group: int, tokens: int, width: int, dtype: torch.dtype) -> tuple[int, int]:
    """Heads of a group, a power of two, that a program takes of each of its tokens or slots; programs of a group."""
    most = MOST_FLOAT32_ROWS if dtype is torch.float32 else MOST_ROWS
    rows = min(most, QUERY_BYTES // (width * dtype.itemsize))
    heads = min(triton.next_power_of_2(group), max(1, rows // tokens))
    return heads, -(-group // heads)


def _warps(rows: int, width: int) -> int:
    """For results [rows, width] of a program."""
    return LARGE_TILE_WARPS if rows >= MOST_ROWS or width >= 2 * MOST_ROWS else TILE_WARPS


def _whole(heads: Tensor) -> Tensor:
    """Tokens [T, heads, size], each contiguous in itself."""
    return heads if heads[0].is_contiguous() else heads.contiguous()


def _page_stride(pool: tuple[Tensor, Tensor]) -> int:
    """Elements from one page to the next, the same for keys and values."""
    keys, values = pool
    if keys.stride() != values.stride() or not keys[0].is_contiguous():
        raise ValueError("a pool's pages of keys and of values lie alike, and each is contiguous")
    return keys.stride(0)
