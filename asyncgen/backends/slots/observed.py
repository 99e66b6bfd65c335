"""What a model's attention layers ask for, observed in one forward pass: the second part of the probe.

The pass runs with an attention of its own, which computes nothing and takes down each call, and with a mask function
(``AttentionMaskInterface``) that makes no mask but hands the rule for it through to the layer. So a window is found
wherever it is configured, and whether or not the layer passes it on as a keyword: a keyword or a mask that our
attention does not look at would otherwise vanish in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from asyncgen.backends.slots.cache import LayerShape
from asyncgen.backends.slots.passes import forward
from asyncgen.backends.slots.unsupported import Unsupported

__all__ = ["OBSERVING", "observe"]

OBSERVING = "asyncgen_slots_observing"
"""What transformers calls the attention that takes down calls."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """A mask before it is made: ``allows(batch, head, query, key)``, of places in the sequence."""

    allows: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Call:
    """One layer's call; shapes are [1, heads, T, size]."""

    module: torch.nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    options: Mapping[str, Any]


@dataclass(slots=True)
class _Notes:
    """Stands in for a pass."""

    calls: list[_Call] = field(default_factory=list)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """See ``Pass``; never called."""
        raise NotImplementedError


def _take_down(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,  # noqa: ARG001  # our attention takes any
    asyncgen_pass: Any = None,
    **options: Any,
) -> tuple[Tensor, None]:
    if not isinstance(asyncgen_pass, _Notes):
        raise Unsupported("its code does not hand on to its attention what a call is given")
    asyncgen_pass.calls.append(_Call(module, query, key, value, attention_mask, options))
    return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None


def _make_rule(*, mask_function: Callable[..., Tensor], **_: Any) -> _Rule:
    return _Rule(mask_function)


AttentionInterface.register(OBSERVING, _take_down)
AttentionMaskInterface.register(OBSERVING, _make_rule)


def observe(model: Any, tokens: Tensor, reach: int) -> list[LayerShape]:
    """The attention layers in the order in which they call, from a pass over ``tokens`` int64 [T].

    The model's attention implementation is ``OBSERVING``. Raises Unsupported.
    """
    notes, count = _Notes(), len(tokens)
    keep = torch.arange(0, count, 2, device=tokens.device)
    logits = forward(model, tokens, torch.arange(count, device=tokens.device), notes, keep)
    layers = int(model.config.num_hidden_layers)
    if not len(notes.calls) == len({id(call.module) for call in notes.calls}) == layers:
        raise Unsupported(f"it attends {len(notes.calls)} times in {layers} layers, not once in each")
    for call in notes.calls:
        _check_options(call.options, reach)
        _check_mask(call.mask, reach, tokens.device)
        _check_tensors(call, count, model)
    if logits.ndim != 2 or len(logits) != len(keep):
        raise Unsupported("it computes logits for all tokens where only some are asked for (logits_to_keep)")
    return [_shape(call) for call in notes.calls]


def _shape(call: _Call) -> LayerShape:
    heads, kv_heads = call.query.shape[1], call.key.shape[1]
    return LayerShape(heads, kv_heads, call.key.shape[3], call.value.shape[3])


_BESIDES = ("use_cache", "return_dict", "output_hidden_states", "output_router_logits")
"""What is done or returned beside the logits, and none of the attention's business."""
_HARMLESS: dict[str, Callable[[Any, int], bool]] = {
    # Queries and keys have their positions in them; only kernels for packed sequences read these.
    "position_ids": lambda _, __: True,
    "cache_position": lambda _, __: True,
    "dropout": lambda value, _: value == 0,
    "is_causal": lambda value, _: value is True,
    # A query sees itself and the window less one before it.
    "sliding_window": lambda value, reach: value >= reach,
    "output_attentions": lambda value, _: value is False,
    **dict.fromkeys(_BESIDES, lambda _, __: True),
}
"""Keywords, and when one that is not None changes nothing in the result."""

_REASONS: dict[str, str] = {
    "sliding_window": "its attention is limited to a sliding window of {} tokens",
    "softcap": "its attention caps scores (softcap {})",
    "s_aux": "its attention has sinks (s_aux)",
    "sinks": "its attention has sinks (sinks)",
    "position_bias": "its attention adds a bias for distance (position_bias)",
    "is_causal": "its attention looks ahead (is_causal {})",
}


def _check_options(options: Mapping[str, Any], reach: int) -> None:
    for name, value in options.items():
        if value is None or (name in _HARMLESS and _HARMLESS[name](value, reach)):
            continue
        reason = _REASONS.get(name, f"its attention asks for {name!r}, of which the engine knows nothing")
        raise Unsupported(reason.format(value))


def _check_mask(mask: Any, reach: int, device: torch.device) -> None:
    """The rule must be: every token sees itself and all before it, up to ``reach``."""
    if mask is None:
        raise Unsupported("its attention does not say which tokens see which")
    if not isinstance(mask, _Rule):
        raise Unsupported("its attention adds a mask or a bias of its own to the scores (ALiBi is one)")
    queries = torch.tensor(sorted({0, 1, reach // 2, reach - 1}), device=device)[:, None]
    keys = torch.arange(reach, device=device)[None]
    zero = torch.zeros((), dtype=torch.int64, device=device)
    seen, before = mask.allows(zero, zero, queries, keys).expand(len(queries), reach), keys <= queries
    if (seen & ~before).any():
        raise Unsupported("its attention looks ahead")
    if not torch.equal(seen, before):
        row = int((seen != before).any(-1).nonzero()[-1])
        place, count = int(queries[row]) + 1, int(seen[row].sum())
        raise Unsupported(f"its attention is limited to a window: of {place} tokens the last sees only {count}")


def _check_tensors(call: _Call, count: int, model: Any) -> None:
    query, key, value = call.query, call.key, call.value
    if not query.shape[2] == key.shape[2] == value.shape[2] == count or len(query) != 1:
        raise Unsupported("its attention is not over the tokens it is given")
    if key.shape[1] != value.shape[1] or query.shape[1] % key.shape[1]:
        raise Unsupported(f"its {query.shape[1]} query heads cannot be shared out among {key.shape[1]} key heads")
    if not query.shape[3] == key.shape[3] == value.shape[3]:
        raise Unsupported(f"its keys and values differ in size ({key.shape[3]} and {value.shape[3]})")
    found = {(each.dtype, each.device) for each in (query, key, value)}
    if found != {(model.dtype, model.device)}:
        raise Unsupported("its attention computes in another number format, or elsewhere, than the model")
