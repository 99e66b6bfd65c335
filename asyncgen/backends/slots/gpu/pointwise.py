"""Norms, rotations and gated activations of a model by one kernel each, where those say what the model's code says.

transformers' own code for them is thirty small kernels a layer, which take a quarter of a step's time on a large GPU
(an estimate). What can be replaced is found by its form, not by a model's name, and tried on random rows first: only
where the results agree to the last bits or so does a kernel take its place. The model's classes stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
import triton
from torch import Tensor, nn

from asyncgen.backends.slots.gpu import pointwise_kernels as kernels

_log = logging.getLogger(__name__)

__all__ = ["Pointwise"]

_ROTATION = "apply_rotary_pos_emb"
"""transformers' name for it, in every model's module."""
_BLOCK = 1024
_ROWS = 5
"""Rows of a trial."""

Forward = Callable[..., Any]


class Pointwise:
    """What is replaced in one model. ``on`` and ``off`` are cheap."""

    def __init__(self, model: Any) -> None:
        """Tries each kind of module once."""
        self.forwards: dict[nn.Module, Forward] = {}
        """Modules, and what computes for them."""
        tried: dict[tuple[object, ...], bool] = {}
        for module in model.modules():
            if "forward" in vars(module):
                continue  # somebody else's
            for find in (_norm, _gated, _rotating):
                if (found := find(module)) is None:
                    continue
                mine, trial, kind = found
                if kind not in tried:
                    tried[kind] = _agrees(trial)
                if tried[kind]:
                    self.forwards[module] = mine
        _log.info("%d modules by kernels of our own", len(self.forwards))

    def on(self) -> None:
        """From now on the kernels compute."""
        for module, forward in self.forwards.items():
            vars(module)["forward"] = forward

    def off(self) -> None:
        """The modules compute as their classes do."""
        for module in self.forwards:
            vars(module).pop("forward", None)


Trial = Callable[[], tuple[Any, Any]]
"""What the model says, and what a kernel says."""
Found = tuple[Forward, Trial, tuple[object, ...]]
"""What computes, how it is tried, and of which modules one trial does for all."""


def _agrees(trial: Trial) -> bool:
    """Whether both say the same, but for the last bits."""
    try:
        for theirs, ours in zip(*trial(), strict=True):
            allowed = 2 * torch.finfo(theirs.dtype).eps
            expected, found = theirs.double(), ours.double()
            apart = (expected - found).abs()
            same = found.shape == expected.shape and ours.dtype == theirs.dtype
            if not same or not bool((apart <= allowed * (expected.abs() + expected.abs().mean())).all()):
                return False
    except Exception as error:  # noqa: BLE001  # another signature, a compiler's trouble: then the model's own code does
        _log.info("no kernel of ours: %s: %s", type(error).__name__, error)
        return False
    return True


def _random(like: Tensor, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(like.device, like.dtype)


# ---- norms


def _norm(module: nn.Module) -> Found | None:
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, Tensor) or weight.dim() != 1:
        return None
    if not isinstance(eps, float):
        return None
    theirs = module.forward
    size = weight.shape[0]

    def forward(hidden: Tensor) -> Tensor:
        if not hidden.is_contiguous() or hidden.dtype != weight.dtype:
            return theirs(hidden)  # type: ignore[no-any-return]  # as the module's class does
        return rms_norm(hidden, weight, eps)

    def trial() -> tuple[Any, Any]:
        rows = _random(weight, 1, _ROWS, size)
        return (theirs(rows),), (rms_norm(rows, weight, eps),)

    return forward, trial, (type(module), size, eps, weight.dtype, weight.device)


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[..., size], contiguous, normed along the last dimension."""
    size = weight.shape[0]
    rows, out = hidden.view(-1, size), torch.empty_like(hidden)
    with torch.cuda.device_of(hidden):  # type: ignore[no-untyped-call]  # torch is typed in parts
        kernels.rms_norm[len(rows),](
            rows, weight, out, size, eps, width=triton.next_power_of_2(size), num_warps=_warps(size)
        )
    return out


# ---- gated activations


def _gated(module: nn.Module) -> Found | None:
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(isinstance(part, nn.Linear) for part in parts):
        return None
    if type(getattr(module, "act_fn", None)).__name__ not in ("SiLU", "SiLUActivation"):
        return None
    gate, up, down = parts
    assert gate is not None
    assert up is not None
    assert down is not None
    theirs = module.forward

    def forward(hidden: Tensor) -> Tensor:
        return down(silu_product(gate(hidden), up(hidden)))  # type: ignore[no-any-return]  # a module's

    def trial() -> tuple[Any, Any]:
        rows = _random(gate.weight, 1, _ROWS, gate.in_features)
        return (theirs(rows),), (forward(rows),)

    return forward, trial, (type(module), gate.in_features, gate.out_features, gate.weight.dtype, gate.weight.device)


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of [..., size] whose rows may lie apart."""
    size = gate.shape[-1]
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    gates, ups = gate.flatten(0, -2), up.flatten(0, -2)
    assert gates.stride(-1) == ups.stride(-1) == 1
    with torch.cuda.device_of(gate):  # type: ignore[no-untyped-call]  # torch is typed in parts
        kernels.silu_product[len(gates), triton.cdiv(size, _BLOCK)](
            gates, ups, out, gates.stride(0), ups.stride(0), size, width=_BLOCK, num_warps=4
        )
    return out


# ---- rotations


def _rotating(module: nn.Module) -> Found | None:
    """Attention whose code calls transformers' function by its name: a copy of that code calls ours."""
    theirs = vars(type(module)).get("forward")
    if not isinstance(theirs, FunctionType) or _ROTATION not in theirs.__code__.co_names:
        return None
    original, size = theirs.__globals__.get(_ROTATION), getattr(module, "head_dim", None)
    weight = next(module.parameters(), None)
    if original is None or not isinstance(size, int) or weight is None:
        return None

    def rotation(queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor, *more: Any, **named: Any) -> Any:
        if more or named or not _can_rotate(queries, keys, cos, sin):
            return original(queries, keys, cos, sin, *more, **named)
        return rotate(queries, keys, cos, sin)

    copied = FunctionType(
        theirs.__code__,
        {**theirs.__globals__, _ROTATION: rotation},
        theirs.__name__,
        theirs.__defaults__,
        theirs.__closure__,
    )
    copied.__kwdefaults__ = theirs.__kwdefaults__

    def trial() -> tuple[Any, Any]:
        queries, keys = _random(weight, 1, 6, _ROWS, size), _random(weight, 1, 2, _ROWS, size)
        angles = _random(weight, 1, _ROWS, size)
        given = queries, keys, angles.cos(), angles.sin()
        return original(*given), rotate(*given)

    return MethodType(copied, module), trial, (original, size, weight.dtype, weight.device)


def _can_rotate(queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> bool:
    batch, _, tokens, size = queries.shape
    whole = all(each.stride(-1) == 1 and each.dtype == queries.dtype for each in (queries, keys, cos, sin))
    angles = cos.shape == sin.shape == (1, tokens, size) and cos.stride() == sin.stride()
    return batch == 1 and size % 2 == 0 and whole and angles


def rotate(queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries [1, H, T, D] and keys [1, KV, T, D] turned by the angles of cos and sin [1, T, D]; tokens come to lie one
    after another, each with all its heads.
    """
    (_, heads, tokens, size), kv_heads = queries.shape, keys.shape[1]
    turned_queries, turned_keys = (queries.new_empty(tokens, count, size) for count in (heads, kv_heads))
    half = size // 2
    with torch.cuda.device_of(queries):  # type: ignore[no-untyped-call]  # torch is typed in parts
        kernels.rotate[tokens, heads + kv_heads](
            queries,
            keys,
            cos,
            sin,
            turned_queries,
            turned_keys,
            queries.stride(2),
            queries.stride(1),
            keys.stride(2),
            keys.stride(1),
            cos.stride(1),
            heads=heads,
            kv_heads=kv_heads,
            half=half,
            width=triton.next_power_of_2(half),
            num_warps=1,
        )
    return turned_queries.transpose(0, 1)[None], turned_keys.transpose(0, 1)[None]


def _warps(size: int) -> int:
    return 4 if size <= _BLOCK * 2 else 8
