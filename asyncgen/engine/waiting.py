"""Small habits of those who wait for an engine, and of what they wait with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

import anyio.lowlevel

__all__ = ["Leaving", "on_loop", "within"]


class Leaving:
    """Something to read from that may be left early, by a block around it or by ``aclose``."""

    async def aclose(self) -> None:
        """Ends it: nothing more is asked, and rows are free after the decode step in progress."""
        self._leave()
        await anyio.lowlevel.checkpoint()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        raise NotImplementedError


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
