"""Small habits of those who wait for an engine, and of what they wait with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import anyio.lowlevel

__all__ = ["Leaving", "too_late", "within"]


class Leaving(ABC):
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

    @abstractmethod
    def _leave(self) -> None:
        """Lets go of all that was asked and is not read; again, it does nothing."""


@contextmanager
def within(seconds: float | None, left: float | None = None) -> Iterator[None]:
    """Raises TimeoutError, with a message, if what is inside takes longer; ``left`` is what is left of ``seconds``."""
    with anyio.move_on_after(seconds if left is None else max(0.0, left)) as scope:
        yield
    if scope.cancelled_caught:
        assert seconds is not None, "there is no time that could have passed"
        raise too_late(seconds)


def too_late(seconds: float) -> TimeoutError:
    """There was no answer within ``seconds``."""
    return TimeoutError(f"no answer within {seconds:g} s")
