"""How long an async function of the user's keeps everybody else from the event loop."""

from __future__ import annotations

import time
import types
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any

__all__ = ["STRETCH", "watched"]

STRETCH = 0.01
"""Seconds without a wait from which the loop counts as blocked."""


@types.coroutine
def watched(awaitable: Awaitable[object], blocked: Callable[[float], object]) -> Generator[Any, Any, object]:
    """The same as awaiting it; ``blocked`` is told each stretch of ``STRETCH`` seconds or more between two waits."""
    steps = _awaited(awaitable)
    step: Callable[[], Any] = partial(steps.send, None)
    while True:
        began = time.perf_counter()
        try:
            waits_for = step()
        except StopIteration as end:
            return end.value
        finally:
            if (seconds := time.perf_counter() - began) >= STRETCH:
                blocked(seconds)
        try:
            step = partial(steps.send, (yield waits_for))
        except BaseException as error:  # noqa: BLE001  # a cancellation, too, is for the function to see
            step = partial(steps.throw, error)


async def _awaited(awaitable: Awaitable[object]) -> object:
    return await awaitable
