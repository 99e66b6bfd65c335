"""Attention as ``Attention`` promises it, one page after another with plain products: on any device, and slow."""

from __future__ import annotations

import torch
from torch import Tensor

from asyncgen.backends.slots.cache import PAGE
from asyncgen.backends.slots.gpu.lanes import Lanes, Packed, Shared

__all__ = ["PlainAttention"]

Partial = tuple[Tensor, Tensor, Tensor]
"""Sums over keys so far: of exp(score - top) x value [M, H, D], of exp(score - top) [M, H], and top [M, H]."""


class PlainAttention:
    """Float32 throughout. What is not written stays as it is: poison in it must not come out."""

    def decode(
        self, queries: Tensor, keys: Tensor, values: Tensor, pool: tuple[Tensor, Tensor], lanes: Lanes, scale: float
    ) -> Tensor:
        """See ``Attention``."""
        slots = torch.arange(len(queries))
        lengths = torch.where(lanes.live, lanes.lengths, 0).long()
        pages = torch.where(lanes.live, lanes.table[slots, lengths // PAGE], 0).long()
        for part, cells in zip((keys, values), pool, strict=True):
            cells[pages, :, torch.where(lanes.live, lengths % PAGE, 0)] = part
        found = _nothing(queries)
        own = torch.where(lanes.live, lengths + 1, 0)
        for place in range(-(-int(own.max()) // PAGE)):
            there = torch.arange(PAGE) + place * PAGE < own[:, None]
            found = _over_page(found, queries, pool, lanes.table[:, place].long(), there, scale)
        prefix = torch.where(lanes.live, lanes.prefix, -1).long()
        tiled = torch.full_like(prefix, -1)
        for row, those in zip(lanes.tile_prefix.tolist(), lanes.tile_slots.tolist(), strict=True):
            tiled[[slot for slot in those if slot >= 0]] = row
        assert torch.equal(torch.where(lanes.live, tiled, -1), prefix), "each slot is in a tile of its prefix"
        found = _over_prefix(found, queries, pool, prefix, lanes.shared, scale)
        return _ended(found, queries.dtype)

    def prefill(
        self, queries: Tensor, keys: Tensor, values: Tensor, pool: tuple[Tensor, Tensor], packed: Packed, scale: float
    ) -> Tensor:
        """See ``Attention``."""
        count = len(queries)
        first, end = torch.full((count,), count), torch.zeros(count, dtype=torch.int64)
        for start, begin, stop in zip(*(each.tolist() for each in _tiles(packed)), strict=True):
            if start >= 0:
                first[start : min(start + 16, stop)], end[start : min(start + 16, stop)] = begin, stop
        real = end > 0
        for part, cells in zip((keys, values), pool, strict=True):
            cells[packed.pages.long()[real], :, packed.offsets.long()[real]] = part[real]
        prefix = torch.where(real, packed.prefix.long(), -1)
        found = _over_prefix(_nothing(queries), queries, pool, prefix, packed.shared, scale)
        for place in range(-(-int(packed.earlier_length) // PAGE)):
            there = (torch.arange(PAGE) + place * PAGE < packed.earlier_length) & real[:, None]
            found = _over_page(found, queries, pool, packed.earlier[place].long().expand(count), there, scale)
        places = torch.arange(count)
        causal = (places >= first[:, None]) & (places <= places[:, None])
        packed_keys, packed_values = (part.transpose(0, 1)[None] for part in (keys, values))
        return _ended(_over(found, queries, packed_keys, packed_values, causal, scale), queries.dtype)


def _tiles(packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
    return packed.tile_start, packed.tile_first, packed.tile_end


def _nothing(queries: Tensor) -> Partial:
    zeros = torch.zeros(queries.shape, dtype=torch.float32)
    return zeros, zeros[..., 0].clone(), torch.full_like(zeros[..., 0], -1e30)


def _over_prefix(
    found: Partial, queries: Tensor, pool: tuple[Tensor, Tensor], prefix: Tensor, shared: Shared, scale: float
) -> Partial:
    lengths = torch.where(prefix >= 0, shared.lengths[prefix], 0)
    for place in range(-(-int(lengths.max()) // PAGE)):
        there = torch.arange(PAGE) + place * PAGE < lengths[:, None]
        found = _over_page(found, queries, pool, shared.table[prefix, place].long(), there, scale)
    return found


def _over_page(
    found: Partial, queries: Tensor, pool: tuple[Tensor, Tensor], pages: Tensor, there: Tensor, scale: float
) -> Partial:
    pages = torch.where(there.any(-1), pages, 0)
    return _over(found, queries, pool[0][pages], pool[1][pages], there, scale)


def _over(found: Partial, queries: Tensor, keys: Tensor, values: Tensor, there: Tensor, scale: float) -> Partial:
    """queries [M, H, D]; keys, values [M, KV, N, D], or [1, KV, N, D] if all have the same; there bool [M, N]."""
    out, mass, top = found
    group = queries.shape[1] // keys.shape[1]
    wanted = there if len(keys) > 1 else there.any(0, keepdim=True)
    keys, values = (each.float().masked_fill(~wanted[:, None, :, None], 0.0) for each in (keys, values))
    keys, values = (each.repeat_interleave(group, dim=1) for each in (keys, values))
    if len(keys) == 1 < len(queries):
        products = "mhd,hnd->mhn", "mhn,hnd->mhd"
        keys, values = keys[0], values[0]
    else:
        products = "mhd,mhnd->mhn", "mhn,mhnd->mhd"
    scores = torch.einsum(products[0], queries.float(), keys) * scale
    scores = scores.masked_fill(~there[:, None], -torch.inf)
    new = torch.maximum(top, scores.amax(-1))
    weights, before = (scores - new[..., None]).exp(), (top - new).exp()
    return (
        out * before[..., None] + torch.einsum(products[1], weights, values),
        mass * before + weights.sum(-1),
        new,
    )


def _ended(found: Partial, dtype: torch.dtype) -> Tensor:
    out, mass, _ = found
    empty = (mass == 0)[..., None]
    return (out / mass[..., None].masked_fill(empty, 1.0)).masked_fill(empty, 0.0).to(dtype)
