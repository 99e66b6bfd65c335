"""What the host tells the device: named numbers that travel in one copy, to places that never change.

A captured pass reads its inputs where they were when it was captured. So they have fixed places in one block of the
device's memory, and one in the host's, which is copied there in the order of everything else that is queued. The copy
happens later than the call; so the host has a few blocks, and writes to each again only when its copy has happened.

The host writes with numpy. Each of torch's functions lets go of the interpreter's lock, and beside a thread that
computes in Python gets it back after its whole turn (5 ms, ``sys.getswitchinterval``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from asyncgen.backends.slots.gpu.recording import cuda_event

__all__ = ["Inbox", "Numbers", "Place"]

Numbers = dict[str, Sequence[int] | Sequence[float] | NDArray[Any]]
"""What is sent, by the name of its place."""

BLOCKS = 4
"""Blocks of the host, which is further ahead of the device only if it has nothing else to do."""
_ALIGNED = 16


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor in a block."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.int32
    fill: int = 0
    """What stands where nothing is sent."""


class Inbox:
    """Blocks of the same ``places`` by name, one of them on the device."""

    def __init__(self, places: Mapping[str, Place], device: torch.device) -> None:
        sizes = [torch.Size(place.shape).numel() * place.dtype.itemsize for place in places.values()]
        starts, end = [], 0
        for size in sizes:
            starts.append(end)
            end += -(-size // _ALIGNED) * _ALIGNED
        self._cuda = device.type == "cuda"

        def cut(block: Tensor) -> dict[str, Tensor]:
            parts = zip(places.items(), starts, sizes, strict=True)
            return {
                name: block[start : start + size].view(place.dtype).view(place.shape)
                for (name, place), start, size in parts
            }

        def flat(block: Tensor) -> list[tuple[str, NDArray[Any], int]]:
            return [(name, view.view(-1).numpy(), places[name].fill) for name, view in cut(block).items()]

        self._there = torch.zeros(end, dtype=torch.uint8, device=device)
        self.there = cut(self._there)
        """The tensors on the device."""
        blocks = [torch.zeros(end, dtype=torch.uint8, pin_memory=self._cuda) for _ in range(BLOCKS)]
        self._blocks = cycle([(block, flat(block), cuda_event() if self._cuda else None) for block in blocks])

    def send(self, numbers: Numbers) -> None:
        """Queues numbers for all places: the first ones of each, in the order in which they lie; the rest is filled.

        Waits only if the device is several sendings behind.
        """
        block, places, copied = next(self._blocks)
        if copied is not None:
            copied.synchronize()
        for name, there, fill in places:
            values = numbers.get(name, ())
            there[: len(values)] = values
            there[len(values) :] = fill
        self._there.copy_(block, non_blocking=True)
        if copied is not None:
            copied.record()
