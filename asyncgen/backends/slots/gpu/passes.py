"""The two passes whose shapes never change: a token of every slot, and packed tokens of prompts.

Each is a function without arguments over tensors in fixed places, which may be captured: forward, sampling and the
change of state, with no question to the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from asyncgen.backends.sampling import Picked, Sampler
from asyncgen.backends.sampling_parameters import Needs, SamplingParameters
from asyncgen.backends.slots.cache import PAGE, LayerShape
from asyncgen.backends.slots.gpu.lanes import Attention, Lanes, Packed, Shared
from asyncgen.backends.slots.gpu.state import State
from asyncgen.backends.slots.passes import forward

__all__ = ["FixedPasses", "Layers", "pools"]

Pool = tuple[Tensor, Tensor]


def pools(layers: Sequence[LayerShape], pages: int, dtype: torch.dtype, device: torch.device) -> list[Pool]:
    """Room for the keys and values of each layer: [pages, KV, PAGE, D] each, with anything in it."""

    def room(layer: LayerShape, size: int) -> Tensor:
        return torch.empty((pages, layer.kv_heads, PAGE, size), dtype=dtype, device=device)

    return [(room(layer, layer.key_size), room(layer, layer.value_size)) for layer in layers]


@dataclass(slots=True)
class Layers:
    """A forward pass: counts the layers as they attend, and hands each its pool (``passes.Pass``)."""

    pools: Sequence[Pool]
    over: Callable[[Tensor, Tensor, Tensor, Pool, float], Tensor]
    calls: int = 0

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """See ``Pass``."""
        layer, self.calls = self.calls, self.calls + 1
        return self.over(queries, keys, values, self.pools[layer], scale)


class FixedPasses:
    """The passes over one engine's tensors. Attributes may be replaced before a pass is captured, not after."""

    def __init__(
        self,
        model: Any,
        attention: Attention,
        sampler: Sampler,
        state: State,
        pools: Sequence[Pool],
        *,
        shared: Shared,
        lanes_told: dict[str, Tensor],
        packed_told: dict[str, Tensor],
    ) -> None:
        """``lanes_told`` and ``packed_told`` are where the host's numbers arrive (``tickets``)."""
        self._model, self._attention, self._sampler = model, attention, sampler
        self._state, self._shared, self._pools = state, shared, pools
        self._lanes_told, self._told = lanes_told, packed_told
        self._slots = lanes_told["alive"].shape[0]

    def let_go(self) -> None:
        """Rows that the host has ended go on no more."""
        self._state.live[: self._slots] &= self._lanes_told["alive"] != 0

    def step(self, needs: Needs) -> None:
        """One more token of every row that is live."""
        state, slots = self._state, slice(self._slots)
        lanes = Lanes(
            state.live[slots],
            state.lengths[slots],
            state.table[slots],
            state.prefix[slots],
            self._shared,
            self._lanes_told["tile_prefix"],
            self._lanes_told["tile_slots"],
        )
        positions = (state.starts[slots] + state.lengths[slots]).long()
        run = Layers(self._pools, lambda q, k, v, pool, scale: self._attention.decode(q, k, v, pool, lanes, scale))
        logits = forward(self._model, state.tokens[slots], positions, run)
        parameters = SamplingParameters(*(getattr(state.parameters, each.name)[slots] for each in _COLUMNS))
        seen = state.penalise()[slots] if needs.penalty else None
        state.take(self._pick(logits, state.seeds[slots], state.drawn[slots], parameters, needs, seen), needs)

    def prefill(self, needs: Needs) -> None:
        """Computes packed tokens, and begins the rows that end with some of them."""
        told, shared = self._told, self._shared
        row = told["shared_row"]
        shared.table.index_copy_(0, row, told["shared_pages"])
        shared.lengths.index_copy_(0, row, told["shared_length"])
        packed = Packed(
            told["tile_start"],
            told["tile_first"],
            told["tile_end"],
            told["pages"],
            told["offsets"],
            told["packed_prefix"],
            shared,
            told["earlier"],
            told["earlier_length"],
        )
        run = Layers(self._pools, lambda q, k, v, pool, scale: self._attention.prefill(q, k, v, pool, packed, scale))
        logits = forward(self._model, told["token_ids"], told["positions"], run, told["keep"])
        parameters = SamplingParameters(*(told[each.name] for each in _COLUMNS))
        seeds, slots = told["seeds"], told["slots"].long()
        seen = self._state.penalise()[slots] if needs.penalty else None
        picked = self._pick(logits, seeds, torch.zeros_like(seeds), parameters, needs, seen)
        self._state.begin(told, parameters, picked, needs)

    def _pick(
        self,
        logits: Tensor,
        seeds: Tensor,
        drawn: Tensor,
        parameters: SamplingParameters,
        needs: Needs,
        seen: Tensor | None,
    ) -> Picked:
        return self._sampler.pick(logits, seeds, drawn, parameters, needs, seen)


_COLUMNS = fields(SamplingParameters)
