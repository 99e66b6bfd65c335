"""What a model says of itself, before anything is computed: the first part of the probe.

Whatever is not declared honestly here is met by the second and third parts (``observed``, ``trial``); what is, gets a
sentence that names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from asyncgen.backends.slots.unsupported import Unsupported

__all__ = ["check_declared"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_DEVICES = ("cpu", "cuda")
_ATTENTION_TYPES = frozenset({"attention", "full_attention", "sliding_attention", "chunked_attention"})
"""What windows and chunks mean at the lengths asked for, ``observed`` finds out."""


def check_declared(model: Any, reach: int) -> None:
    """Raises Unsupported for what the model's class, configuration or weights rule out."""
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise Unsupported("it is an encoder with a decoder")
    if config.get_text_config(decoder=True) is not config:
        raise Unsupported("it is a model of more than text")
    if getattr(model, "_is_stateful", False):
        raise Unsupported("its layers keep a state that is no attention (recurrent or convolutional)")
    for kind in getattr(config, "layer_types", None) or ():
        if kind not in _ATTENTION_TYPES:
            raise Unsupported(f"it has layers of the type {kind!r}, which are no plain attention")
    if not getattr(model, "_supports_attention_backend", False):
        raise Unsupported("its code does not let its attention be replaced (transformers' attention interface)")
    _check_rope(config, reach)
    _check_weights(model)


def _check_rope(config: Any, reach: int) -> None:
    """Tables of rotary positions that are replaced when the longest row passes some length.

    All rows are computed in one pass, so one long row would change the positions of all others.
    """
    for table in _rope_tables(config):
        kind = str(table.get("rope_type") or table.get("type"))
        whole = getattr(config, "max_position_embeddings", None)
        if "dynamic" in kind:
            limit = whole
        elif kind == "longrope":
            limit = table.get("original_max_position_embeddings")
            limit = limit or getattr(config, "original_max_position_embeddings", None) or whole
        else:
            continue
        if limit is None or reach > limit:
            raise Unsupported(f"its positions are computed anew beyond {limit} tokens ({kind}), and {reach} may come")


def _rope_tables(config: Any) -> Iterator[Mapping[str, Any]]:
    """One for the model, or one for each type of layer."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [table for table in found.values() if isinstance(table, Mapping)]
    yield from nested or [found]


def _check_weights(model: Any) -> None:
    if model.dtype not in _DTYPES:
        raise Unsupported(f"its number format is {str(model.dtype).removeprefix('torch.')}")
    devices = {str(weights.device) for weights in model.parameters()}
    if len(devices) == 1 and model.device.type not in _DEVICES:
        raise Unsupported(f"it is on the device {model.device}, and the engine computes on a CPU or a CUDA GPU")
    if len(devices) > 1:
        raise Unsupported(f"its weights are spread over several devices ({', '.join(sorted(devices))})")
