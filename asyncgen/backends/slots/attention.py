"""Attention over a shared prefix and a row's own tokens, as partial results that are put together at the end.

A partial result over some keys is (out, lse): the attention over these keys alone, and the logarithm of the sum of the
exponentials of their scores. Those of two disjoint sets of keys give that of their union (Milakov and Gimelshein 2018;
used for shared prefixes by Hydragen, Juravsky et al. 2024): with ``w = exp(lse - max)``, it is the mean of the outs
weighted by w. So a prefix is read once for all rows, as one dense product, and nothing is copied for any of them.

Every function here is a function of tensors alone: M rows, H query heads in groups of G to KV key and value heads, D
the size of a head, N pages of PAGE cells. Queries come scaled. What a row gets does not depend, to the bit (on a CPU,
in float32), on the other rows or on its place among them: products have at least eight rows, a multiple of four.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asyncgen.backends.slots.cache import NEUTRAL, PAGE, LayerShape

__all__ = ["Partials", "attend_causally", "attend_pages", "attend_prefix", "merge", "merge_pages"]


@dataclass(frozen=True, slots=True)
class Partials:
    """Results page by page, and room for them: one element more than pages, which stays neutral."""

    scores: Tensor
    """float32 [pages, H, PAGE]; work space."""
    weights: Tensor
    """Like ``scores``, in the model's number format; the same tensor if that is float32."""
    out: Tensor
    """[pages + 1, H, D]: not divided by ``mass``."""
    top: Tensor
    """float32 [pages + 1, H]: the largest score."""
    mass: Tensor
    """float32 [pages + 1, H]: the sum of exp(score - top)."""

    @classmethod
    def room(cls, layer: LayerShape, pages: int, dtype: torch.dtype, device: torch.device) -> Partials:
        """Room for the results of this many pages."""

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        scores = empty(pages, layer.heads, PAGE)
        weights = scores if dtype is torch.float32 else empty(pages, layer.heads, PAGE, dtype=dtype)
        room = cls(
            scores,
            weights,
            empty(pages + 1, layer.heads, layer.value_size, dtype=dtype),
            empty(pages + 1, layer.heads),
            empty(pages + 1, layer.heads),
        )
        room.out[-1], room.top[-1], room.mass[-1] = 0, NEUTRAL, 0
        return room


def attend_pages(queries: Tensor, keys: Tensor, values: Tensor, owners: Tensor, bias: Tensor, room: Partials) -> None:
    """Attention of each page's owner over that page, written to the first N elements of ``room``.

    queries [M, H, D]; keys [N, KV, PAGE, D]; values [N, KV, PAGE, Dv]; owners int64 [N], each in [0, M); bias float32
    [N, 1, PAGE], added to the scores. One product of N x KV small matrices each way.
    """
    count, kv_heads = keys.shape[:2]
    heads, size = queries.shape[1:]
    shape = (count * kv_heads, heads // kv_heads)
    scores, weights = room.scores[:count], room.weights[:count]
    raw = weights.view(*shape, PAGE)
    torch.bmm(queries[owners].view(*shape, size), keys.view(shape[0], PAGE, size).transpose(1, 2), out=raw)
    if weights is not scores and weights.dtype != scores.dtype:
        scores.copy_(weights)
    scores.add_(bias)
    top = torch.amax(scores, dim=-1, out=room.top[:count])
    scores.sub_(top[..., None]).exp_()
    torch.sum(scores, dim=-1, out=room.mass[:count])
    if weights.dtype != scores.dtype:
        weights.copy_(scores)
    out = room.out[:count].view(*shape, values.shape[-1])
    torch.bmm(raw, values.view(shape[0], PAGE, values.shape[-1]), out=out)


def merge_pages(room: Partials, table: Tensor, prefix: tuple[Tensor, Tensor] | None) -> Tensor:
    """Attention [M, H, D], float32, of rows over their pages and their prefix.

    table int64 [M, P]: each row's pages in the order of its tokens, filled up with the neutral element; ``prefix`` is
    (out [M, H, D], lse float32 [M, H]) or None.
    """
    tops = room.top[table]
    top = tops.amax(dim=1)
    if prefix is not None:
        top = torch.maximum(top, prefix[1])
    weights = tops.sub_(top[:, None]).exp_()
    mass = (weights * room.mass[table]).sum(dim=1)
    out = (room.out[table] * weights[..., None]).sum(dim=1)
    if prefix is not None:
        weight = (prefix[1] - top).exp_()
        mass += weight
        out += prefix[0] * weight[..., None]
    return out.div_(mass[..., None])


def attend_prefix(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of all rows over one prefix: out [M, H, D], lse float32 [M, H].

    queries [M, H, D]; keys and values [1, KV, P, D]. The query heads of a group are rows of one product.
    """
    rows, heads, size = queries.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    folded = queries.view(rows, kv_heads, group, size).transpose(0, 1).reshape(1, kv_heads, rows * group, size)
    out, lse = _flash(folded, keys, values, causal=False)
    out = out.view(kv_heads, rows, group, values.shape[-1]).transpose(0, 1).reshape(rows, heads, values.shape[-1])
    return out, lse.view(kv_heads, rows, group).transpose(0, 1).reshape(rows, heads)


def attend_causally(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of R sequences over themselves, each token over those up to it: out [R, H, L, D], lse [R, H, L].

    queries [R, H, L, D]; keys and values [R, KV, L, D]. L is a multiple of 32: what fills it up comes last.
    """
    group = queries.shape[1] // keys.shape[1]
    if group > 1:
        keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
    return _flash(queries, keys, values, causal=True)


def merge(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """Attention over the union of two disjoint sets of keys, from (out [..., D], lse [...]) over each."""
    top = torch.maximum(one[1], other[1])
    mine, theirs = (one[1] - top).exp_()[..., None], (other[1] - top).exp_()[..., None]
    return (one[0] * mine).add_(other[0] * theirs).div_(mine + theirs)


def _flash(queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention of queries [R, H, L, D] and the logarithm [R, H, L] that torch's public function keeps to itself."""
    if queries.device.type != "cpu":
        return _plain(queries, keys, values, causal=causal)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001
        queries, keys, values, 0.0, causal, scale=1.0
    )
    return out, lse


def _plain(queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """The same by plain products, on any device: correct, and slow for long sequences."""
    scores = (queries @ keys.transpose(-1, -2)).float()
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    lse = scores.logsumexp(dim=-1)
    return (scores - lse[..., None]).exp().to(values.dtype) @ values, lse
