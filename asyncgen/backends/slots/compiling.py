"""The small operations of a model's layers (norms, rotations, activations, residual sums) compiled into few kernels.

``torch.compile`` does it, layer by layer: all layers have the same code, so it is compiled once for each shape. Where a
layer attends, the compiled code is left and entered again, which costs nothing when steps are captured. Matrix products
stay those of the library.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from asyncgen.backends.slots.passes import NAME, attention

__all__ = ["Compiling", "layers_of"]


def layers_of(model: Any) -> list[nn.Module]:
    """The model's layers: the modules of its only list that has as many as its configuration says; else none."""
    count = int(model.config.num_hidden_layers)
    lists = [each for each in model.modules() if isinstance(each, nn.ModuleList) and len(each) == count]
    return list(lists[0]) if len(lists) == 1 and count > 1 else []


class Compiling:
    """``on`` and ``off`` for one model. What is compiled is compiled when it is first called."""

    def __init__(self, model: Any, compiler: str = "inductor") -> None:
        self.layers = layers_of(model)
        self._compiler = compiler

    def on(self) -> None:
        """From now on the layers are compiled code."""
        # Imports a compiler, so not before it is needed. What it wraps is the same function.
        AttentionInterface.register(NAME, torch.compiler.disable(attention))  # type: ignore[no-untyped-call]  # torch is typed in parts
        for layer in self.layers:
            vars(layer)["forward"] = torch.compile(layer.forward, dynamic=False, backend=self._compiler)

    def off(self) -> None:
        """The layers are what they were."""
        AttentionInterface.register(NAME, attention)
        for layer in self.layers:
            vars(layer).pop("forward", None)
