"""The two kinds of forward pass: a token of every row (``Decode``), and the prompts of new rows (``Prefill``).

An unmodified transformers model is called on packed tokens, [1, T], without a cache; its attention layers call
``attention`` below (``AttentionInterface``), which hands queries, keys and values to the pass that the call was given
as a keyword. The pass counts the layers as they call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface

from asyncgen.backends.slots.attention import (
    Partials,
    attend_causally,
    attend_pages,
    attend_prefix,
    merge,
    merge_pages,
)
from asyncgen.backends.slots.cache import ALIGNED, NEUTRAL, Cache

__all__ = ["NAME", "Decode", "Pass", "Prefill", "Prefix", "attention", "forward"]

NAME = "asyncgen_slots"
"""What transformers calls our attention."""

BUCKET = 32
"""A prompt's own tokens are filled up to a multiple of this, so its bits do not depend on longer neighbours."""


class Pass(Protocol):
    """What a forward pass does where the model attends."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Attention [T, H, D] of T packed tokens: queries [T, H, D], keys and values [T, KV, D]; ``scale`` multiplies
        scores.
        """


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001  # transformers' signature
    scaling: float | None = None,
    asyncgen_pass: Pass | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for each attention layer: heads [1, H, T, D] in, tokens [1, T, H, D] out.

    Keywords that would change the result are refused when the model is probed, not here.
    """
    if asyncgen_pass is None:
        raise RuntimeError(f"the attention of {type(module).__name__} was called outside a pass")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    queries, keys, values = (each[0].transpose(0, 1) for each in (query, key, value))
    return asyncgen_pass.attend(queries, keys, values, scale)[None, ..., : value.shape[-1]], None


def _scaled(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries, keys and values, as ``slots.attention`` takes them."""
    return _aligned(queries * scale).contiguous(), _aligned(keys), _aligned(values)


def _aligned(heads: Tensor) -> Tensor:
    """With zeros up to a multiple of ``ALIGNED``: scores and outputs are what they were."""
    missing = -heads.shape[-1] % ALIGNED
    return torch.nn.functional.pad(heads, (0, missing)) if missing else heads


AttentionInterface.register(NAME, attention)


def forward(model: Any, tokens: Tensor, positions: Tensor, asyncgen_pass: Pass, keep: Tensor | int = 0) -> Tensor:
    """Logits [K, V] of the tokens at the places ``keep`` (int64 [K]; 0: all), of packed ``tokens`` int64 [T]."""
    logits: Tensor = model(
        input_ids=tokens[None],
        position_ids=positions[None],
        use_cache=False,
        logits_to_keep=keep,
        asyncgen_pass=asyncgen_pass,
    ).logits
    return logits[0]


@dataclass(frozen=True, slots=True)
class Prefix:
    """A shared beginning, computed once: keys and values [1, KV, P, D] of each layer."""

    tokens: tuple[int, ...]
    keys: list[Tensor]
    values: list[Tensor]


class Decode:
    """One token of each of M lanes. A lane is a slot that is computed: those with a row, and some that fill a shape."""

    def __init__(
        self,
        cache: Cache,
        rooms: Sequence[Partials],
        *,
        pages: Tensor,
        offsets: Tensor,
        table: Tensor,
        owners: Tensor,
        prefixes: Sequence[tuple[Prefix, Tensor | None]],
    ) -> None:
        """Pages and offsets int64 [M]: where each lane's token is written; table int64 [M, P] and owners int64 [N]: see
        ``attention``; ``prefixes``: each with its lanes (int64), None for all of them.
        """
        self._cache, self._rooms = cache, rooms
        self._pages, self._offsets, self._table, self._owners = pages, offsets, table, owners
        self._prefixes = prefixes
        self.calls = 0

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """See ``Pass``."""
        layer, self.calls = self.calls, self.calls + 1
        queries, keys, values = _scaled(queries, keys, values, scale)
        cache, room, region = self._cache, self._rooms[layer], self._owners.shape[0]
        cache.write(layer, self._pages, self._offsets, keys, values)
        own_keys, own_values = cache.keys[layer][:region], cache.values[layer][:region]
        attend_pages(queries, own_keys, own_values, self._owners, cache.bias[:region], room)
        return merge_pages(room, self._table, self._over_prefixes(layer, queries)).to(queries.dtype)

    def _over_prefixes(self, layer: int, queries: Tensor) -> tuple[Tensor, Tensor] | None:
        if not self._prefixes:
            return None
        (first, lanes), *more = self._prefixes
        if lanes is None:
            return attend_prefix(queries, first.keys[layer], first.values[layer])
        out = queries.new_zeros((*queries.shape[:2], first.values[layer].shape[-1]))
        lse = torch.full(queries.shape[:2], NEUTRAL, dtype=torch.float32, device=queries.device)
        for prefix, those in ((first, lanes), *more):
            assert those is not None
            out[those], lse[those] = attend_prefix(queries[those], prefix.keys[layer], prefix.values[layer])
        return out, lse


class Prefill:
    """The own tokens of several prompts, packed one after another, behind the same prefix or none."""

    def __init__(self, lengths: Sequence[int], prefix: Prefix | None, device: torch.device) -> None:
        """``lengths``: tokens of each prompt."""
        self._prefix = prefix
        self.calls = 0
        self.keys: list[Tensor] = []
        """What the layers computed: keys [T, KV, D] of each."""
        self.values: list[Tensor] = []
        self._buckets = [
            (places.to(device), cells.to(device), packed.to(device)) for places, cells, packed in _buckets(lengths)
        ]

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """See ``Pass``."""
        layer, self.calls = self.calls, self.calls + 1
        queries, keys, values = _scaled(queries, keys, values, scale)
        self.keys.append(keys)
        self.values.append(values)
        out = torch.zeros_like(queries)
        lse = torch.zeros(queries.shape[:2], dtype=torch.float32, device=queries.device)
        for places, cells, packed in self._buckets:
            squares = (each[places].transpose(1, 2) for each in (queries, keys, values))
            some, some_lse = attend_causally(*squares)
            out[packed] = some.transpose(1, 2).flatten(0, 1)[cells]
            lse[packed] = some_lse.transpose(1, 2).flatten(0, 1)[cells]
        if self._prefix is None:
            return out
        over_prefix = attend_prefix(queries, self._prefix.keys[layer], self._prefix.values[layer])
        return merge((out, lse), over_prefix).to(queries.dtype)


def _buckets(lengths: Sequence[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each filled-up length L, the prompts that have it: their tokens' places in the packed sequence, int64 [R, L]
    (what fills up repeats the first), which of the R x L cells are theirs, and the place of each of these.
    """
    members: dict[int, list[tuple[int, int]]] = {}
    start = 0
    for length in lengths:
        members.setdefault(BUCKET * -(-length // BUCKET), []).append((start, length))
        start += length
    found = []
    for size, prompts in members.items():
        offsets = torch.arange(size)
        starts = torch.tensor([first for first, _ in prompts])[:, None]
        mine = offsets < torch.tensor([length for _, length in prompts])[:, None]
        places = torch.where(mine, starts + offsets, starts)
        found.append((places, mine.flatten().nonzero()[:, 0], places[mine]))
    return found
