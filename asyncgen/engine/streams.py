"""One answer's text, while it is made."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from time import monotonic
from typing import Self

from asyncgen.backends import Reader
from asyncgen.engine.asking import Asked
from asyncgen.engine.core import Core
from asyncgen.engine.request import Request
from asyncgen.engine.waiting import Leaving, within
from asyncgen.records import Completion
from asyncgen.tasks import on_loop

_log = logging.getLogger(__name__)

__all__ = ["TextStream"]


class TextStream(Leaving):
    """Pieces of text, to be read with ``async for``; in an ``async with`` block, leaving it frees the row at once.

    It asks when the first piece is wanted. Tokens are made text as it is read, so a reader that is slow or gone costs
    the engine nothing. A ``timeout`` counts from the first reading to the last piece.
    """

    def __init__(self, core: Core, asked: Asked) -> None:
        self._core, self._asked = core, asked
        self._request: Request | None = None
        self._reader: Reader | None = None
        self._end: float | None = None
        self._text = ""
        self._over = self._reading = False

    @property
    def completion(self) -> Completion:
        """The whole answer, when the last piece is read. Raises RuntimeError before."""
        if self._request is None or not self._over or not self._request.wanted:
            raise RuntimeError("the stream was not read to its end")
        return self._request.completion()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        self._core.check_loop()
        if self._reading:
            raise RuntimeError("somebody else reads this stream at the moment; a stream has one reader")
        if self._over:
            raise StopAsyncIteration
        self._reading = True
        try:
            if piece := await self._next():
                return piece
        except BaseException:
            self._leave()
            raise
        finally:
            self._reading = False
        self._over = True
        raise StopAsyncIteration

    def __del__(self) -> None:
        if self._request is not None and not self._over:
            on_loop(self._core.loop, self._core.abandon, self._request)

    def _leave(self) -> None:
        if not self._over:
            self._over = True
            if self._request is not None:
                self._core.abandon(self._request)

    async def _next(self) -> str:
        """The next piece; empty if that was all, or it was left meanwhile."""
        if self._request is None:
            self._end = None if self._asked.timeout is None else monotonic() + self._asked.timeout
            with self._in_time():
                self._request = await self._core.enter(self._asked)
        if self._reader is None:
            self._reader = self._core.backend.reader(self._asked.prompt)
        while True:
            with self._in_time():
                pieces = await self._request.news()
            if self._over:
                return ""
            if not pieces:
                return self._rest(self._request.completion())
            if text := "".join([self._reader.add(piece) for piece in pieces]):
                self._text += text
                return text

    def _in_time(self) -> AbstractContextManager[None]:
        return within(self._asked.timeout, None if self._end is None else self._end - monotonic())

    def _rest(self, completion: Completion) -> str:
        """What of the completion's text was not given yet."""
        rest = completion.text[len(self._text) :]
        if not completion.text.startswith(self._text):
            _log.info("the tokenizer wrote %r as %r, piece by piece", completion.text, self._text)
        self._text += rest
        return rest
