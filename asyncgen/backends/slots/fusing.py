"""One product instead of several, where linear layers multiply the same tensor: queries, keys and values, for one.

Small products leave a GPU half idle, and each is a launch. Which layers get the same tensor is observed in a forward
pass, not listed by name; their weights are laid one after another in memory, and what each layer had is a part of
that, so nothing is there twice. The model's code stays as it is: the first of such layers that is called computes for
all, and the others hand out their share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Fusing"]


class _Group:
    """Linear layers that get the same tensor, in the order in which they are called."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.layers = layers
        self.sizes = [layer.out_features for layer in layers]
        self._weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self._bias = torch.cat([bias.detach() for bias in biases]) if biases else None
        for layer, weight in zip(layers, torch.split(self._weight, self.sizes), strict=True):
            layer.weight = nn.Parameter(weight, requires_grad=False)
        if self._bias is not None:
            for layer, bias in zip(layers, torch.split(self._bias, self.sizes), strict=True):
                layer.bias = nn.Parameter(bias, requires_grad=False)
        self._waiting: list[Tensor] = []

    def on(self) -> None:
        """From now on it is one product."""
        for number, layer in enumerate(self.layers):
            vars(layer)["forward"] = self._first if number == 0 else self._next

    def off(self) -> None:
        """Each layer computes for itself."""
        for layer in self.layers:
            vars(layer).pop("forward", None)

    def _first(self, input: Tensor) -> Tensor:  # noqa: A002  # as nn.Linear calls it
        """[..., in] -> [..., out of the first layer]."""
        product = nn.functional.linear(input, self._weight, self._bias)
        first: Tensor
        first, *self._waiting = torch.split(product, self.sizes, dim=-1)
        return first

    def _next(self, input: Tensor) -> Tensor:  # noqa: A002, ARG002  # the same tensor as the first one's
        return self._waiting.pop(0)


class Fusing:
    """The groups of a model. ``on`` and ``off`` are cheap; weights stay where they were laid."""

    def __init__(self, model: Any, run: Callable[[], object]) -> None:
        """``run`` makes one forward pass of the model as it will be used."""
        with torch.inference_mode():
            self.groups = [_Group(layers) for layers in _alike(_calls(model, run))]

    def on(self) -> None:
        """From now on each group is one product."""
        for group in self.groups:
            group.on()

    def off(self) -> None:
        """Every layer computes for itself, as its class does."""
        for group in self.groups:
            group.off()


def _calls(model: Any, run: Callable[[], object]) -> list[tuple[nn.Linear, Tensor]]:
    """Which linear layers are called in a pass, in order, with what."""
    calls: list[tuple[nn.Linear, Tensor]] = []

    def note(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(layer, nn.Linear)
        calls.append((layer, arguments[0]))

    head = model.get_output_embeddings()  # often the embedding's own weights, which must stay where they are
    linears = [each for each in model.modules() if type(each) is nn.Linear and each is not head]
    plain = [each for each in linears if "forward" not in vars(each)]
    hooks = [layer.register_forward_pre_hook(note) for layer in plain]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _alike(calls: Sequence[tuple[nn.Linear, Tensor]]) -> list[list[nn.Linear]]:
    """Layers called one right after another with the same tensor, each only once in all; two at least."""
    times: dict[int, int] = {}
    for layer, _ in calls:
        times[id(layer)] = times.get(id(layer), 0) + 1
    groups: list[list[nn.Linear]] = []
    before: Tensor | None = None
    for layer, given in calls:
        if given is before and groups and _fits(groups[-1][0], layer) and times[id(layer)] == 1:
            groups[-1].append(layer)
        else:
            groups.append([layer] if times[id(layer)] == 1 else [])
        before = given if groups[-1] else None
    return [group for group in groups if len(group) > 1]


def _fits(one: nn.Linear, other: nn.Linear) -> bool:
    same_kind = one.weight.dtype == other.weight.dtype and one.weight.device == other.weight.device
    return same_kind and (one.bias is None) == (other.bias is None) and one.in_features == other.in_features
