"""Products of linear layers with weights that are packed once for oneDNN: float32 on an x86 CPU.

A plain product packs its weights anew every time, as long as there are few rows. Packed beforehand, the products of a
step take 0.6 to 0.9 of the time (measured for 128 rows on two cores; the fewer rows for the weights' size, the more it
saves), and no row's bits depend on the number of rows at all.

The model's code stays as it is: only ``forward`` of each plain ``nn.Linear`` is another function, on that instance. The
operators are those that torch's compiler calls for the same purpose when weights are frozen.
"""

from __future__ import annotations

import logging
import platform
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from asyncgen.backends.memory import total_bytes

_log = logging.getLogger(__name__)

__all__ = ["Packing"]

ROWS = 128
"""Rows for which weights are packed; other numbers work too."""
SHARE = 0.25
"""Share of the memory there is that packed weights may take beside the plain ones; larger models are not packed. Not
of what happens to be free: bits must not depend on that."""


class _Packed:
    """What an instance of ``nn.Linear`` gets as its ``forward``."""

    def __init__(self, linear: nn.Linear) -> None:
        self._plain = linear
        # The underscores are torch's: these operators have no other names.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)  # noqa: SLF001

    def __call__(self, input: Tensor) -> Tensor:  # noqa: A002  # as nn.Linear calls it
        """[..., in] -> [..., out]."""
        bias: Tensor | None = self._plain.bias
        if not input.numel():
            return nn.functional.linear(input, self._plain.weight, bias)
        if bias is not None:
            bias = bias.contiguous()  # the operator takes no strides into account
        product: Tensor = torch.ops.mkldnn._linear_pointwise(input, self._weight, bias, "none", [], "")  # noqa: SLF001
        return product


class Packing:
    """The packed weights of a model's linear layers; none where they are of no use. ``on`` and ``off`` are cheap."""

    @torch.inference_mode()
    def __init__(self, model: Any) -> None:
        linears = [each for each in model.modules() if type(each) is nn.Linear and "forward" not in vars(each)]
        linears = [each for each in linears if each.weight.dtype == torch.float32 and each.weight.device.type == "cpu"]
        size = sum(each.weight.nbytes for each in linears)
        wanted = size <= SHARE * total_bytes() and _works()
        try:
            self.layers = {each: _Packed(each) for each in linears} if wanted else {}
        except RuntimeError as error:  # out of memory, most likely
            _log.info("the weights of linear layers are not packed: %s", error)
            self.layers = {}

    def on(self) -> None:
        """From now on the layers compute with their packed weights."""
        for linear, packed in self.layers.items():
            vars(linear)["forward"] = packed

    def off(self) -> None:
        """The model is as it was."""
        for linear in self.layers:
            vars(linear).pop("forward", None)


@cache
def _works() -> bool:
    """Whether there are such operators here, and they compute what they should."""
    built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch is typed in parts
    if platform.machine() not in {"x86_64", "AMD64"} or not built:
        return False
    linear = nn.Linear(48, 80, device="meta").to_empty(device="cpu")  # the application's random numbers are its own
    with torch.no_grad():
        for part in linear.parameters():
            part.copy_(torch.arange(part.numel()).view(part.shape).sin())
    rows = torch.arange(ROWS * 48.0).view(ROWS, 48).cos()
    try:
        found = _Packed(linear)(rows)
    except (AttributeError, RuntimeError):  # another version of torch
        return False
    return torch.allclose(found, nn.functional.linear(rows, linear.weight, linear.bias), atol=1e-5)
