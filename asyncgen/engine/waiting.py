"""Small habits of those who wait for an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import anyio

__all__ = ["on_loop", "within"]


@contextmanager
def within(seconds: float | None, left: float | None = None) -> Iterator[None]:
    """Raises TimeoutError, with a message, if what is inside takes longer; ``left`` is what is left of ``seconds``."""
    try:
        with anyio.fail_after(seconds if left is None else max(0.0, left)):
            yield
    except TimeoutError:
        raise TimeoutError(f"no answer within {seconds:g} s") from None


def on_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object) -> None:
    """Calls ``function`` on ``loop`` from anywhere, a finalizer too; a loop that is closed has nothing left to do."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)
