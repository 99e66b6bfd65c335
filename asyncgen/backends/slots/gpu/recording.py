"""A pass that is queued over and over: captured once as a CUDA graph and replayed, or simply called.

Captured, a pass of a thousand and more small kernels costs the host one call, and the device no gaps between them. It
must then be the same every time: tensors in the same places, no question to the device on the way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter
from typing import Protocol

import torch

_log = logging.getLogger(__name__)

__all__ = ["Called", "Captured", "Recorder", "cuda_event", "cuda_stream"]

WARM_UPS = 2
"""Calls before capturing: libraries choose their kernels, and compilers compile, when first called."""


def cuda_event() -> torch.cuda.Event:
    """Something that has happened on the device; whoever waits for it sleeps."""
    return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch is typed in parts


def cuda_stream(device: torch.device) -> torch.cuda.Stream:
    """An order of its own for what is queued on ``device``."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch is typed in parts


class Recorder(Protocol):
    """How passes are made ready to be queued."""

    def record(self, name: str, call: Callable[[], None]) -> Callable[[], object]:
        """What queues ``call``. It may be called now, a few times; ``name`` is for the log."""


class Called:
    """Passes are called each time: anywhere, and whatever they do."""

    def record(self, name: str, call: Callable[[], None]) -> Callable[[], object]:  # noqa: ARG002  # the protocol's
        """See ``Recorder``."""
        return call


class Captured:
    """Passes are captured on ``stream``, and have to be replayed there; all use one pool of memory, for none runs while
    another does.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, name: str, call: Callable[[], None]) -> Callable[[], object]:
        """See ``Recorder``. Raises what capturing raises where a pass asks the device something."""
        began = perf_counter()
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                call()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads (validators, somebody else's model) may go on using the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            call()
        _log.info("captured %s in %.1f s", name, perf_counter() - began)
        return graph.replay
