"""A pass that is queued over and over: captured once as a CUDA graph and replayed, or simply called.

Captured, a pass of a thousand and more small kernels costs the host one call, and the device no gaps between them. It
must then be the same every time: tensors in the same places, no question to the device on the way.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from time import perf_counter
from typing import Any, Protocol

import torch

_log = logging.getLogger(__name__)

__all__ = ["WARM_UPS", "Called", "Captured", "Recorder", "cuda_event", "return_stream", "take_stream"]

WARM_UPS = 2
"""Calls before capturing: libraries choose their kernels, and compilers compile, when first called."""


def cuda_event() -> torch.cuda.Event:
    """Something that has happened on the device; whoever waits for it sleeps."""
    return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch is typed in parts


_streams: list[torch.cuda.Stream] = []
"""Those nobody has. Matrix libraries keep work space for every stream that they have ever met (32 MiB on an H200), so
whoever needs another takes one of these.
"""


def take_stream(device: torch.device) -> torch.cuda.Stream:
    """An order of its own for what is queued on ``device``."""
    index = torch.cuda.current_device() if device.index is None else device.index
    for stream in tuple(_streams):
        if stream.device_index == index:
            with suppress(ValueError):  # another thread has taken it
                _streams.remove(stream)
                return stream
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch is typed in parts


def return_stream(stream: torch.cuda.Stream) -> None:
    """Gives back a stream on which nothing more is queued."""
    _streams.append(stream)


class Recorder(Protocol):
    """How passes are made ready to be queued."""

    def record(self, name: str, call: Callable[[], None]) -> Callable[[], object]:
        """What queues ``call``. It may be called now, ``WARM_UPS`` times at most; ``name`` is for the log."""


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
        with torch.cuda.stream(stream):
            self._nothing = torch.zeros(1, device=stream.device)

    def record(self, name: str, call: Callable[[], None]) -> Callable[[], object]:
        """See ``Recorder``. Raises what capturing raises where a pass asks the device something; nothing of such a
        capture stays behind.
        """
        began = perf_counter()
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                call()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        failures: list[Exception] = []
        try:
            with _no_collection(), self._capturing(graph, self._pool):
                try:
                    call()
                except Exception as error:
                    failures.append(error)
                    raise
        except Exception as error:  # noqa: BLE001  # whatever a pass raises
            self._give_up()
            # The end of a capture that has failed fails too, and says less.
            raise (failures or [error])[0] from None
        _log.info("captured %s in %.1f s", name, perf_counter() - began)
        return graph.replay

    def _capturing(self, graph: torch.cuda.CUDAGraph, pool: Any = None) -> AbstractContextManager[None]:
        # Other threads (validators, somebody else's model) may go on using the device meanwhile.
        return torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local")

    def _give_up(self) -> None:
        """Ends what a failed capture leaves unended (torch 2.11, what ``CUDAGraph::capture_end`` did not get to).

        The allocator would go on as if something was being captured, and give no memory back any more in this process;
        that of pinned memory cannot be told, but knows the pool, so there is another one from now on; and random
        numbers would be refused, which a capture that succeeds puts right.
        """
        device = self._stream.device_index
        with suppress(AttributeError, RuntimeError):  # this raises where the capture was ended as it should be
            torch._C._cuda_endAllocateToPool(device, self._pool)  # noqa: SLF001
            torch._C._cuda_releasePool(device, self._pool)  # noqa: SLF001
        self._pool = torch.cuda.graph_pool_handle()
        with suppress(RuntimeError), self._capturing(torch.cuda.CUDAGraph()):
            self._nothing.add_(0)


@contextmanager
def _no_collection() -> Iterator[None]:
    """A collection at the wrong moment could free something whose end is noted on the stream that is captured."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
