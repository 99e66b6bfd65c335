"""The answers to many prompts, which are taken no faster than answers are read."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable
from contextlib import aclosing, closing, nullcontext
from itertools import count
from time import monotonic
from typing import Self

import anyio

from asyncgen.engine.asking import Asked, Question
from asyncgen.engine.core import Core
from asyncgen.engine.request import Request
from asyncgen.engine.waiting import Leaving, within
from asyncgen.errors import BackendFailed, EngineClosed
from asyncgen.packing import Bell
from asyncgen.records import Completion, FinishReason
from asyncgen.tasks import ends_this_task, on_loop

__all__ = ["Answers"]

CLOSING_SECONDS = 10.0
"""How long prompts that are left early may take to end."""

Prompts = Iterable[Question] | AsyncIterable[Question]


class _Feed:
    """Takes prompts and asks, in a task of the engine's. Knows nothing of whoever reads, so that they can be gone."""

    def __init__(self, core: Core, prompts: Prompts, ask: Callable[[int, Question], Asked], ahead: int) -> None:
        self._core, self._prompts, self._ask = core, prompts, ask
        self.room = anyio.Semaphore(ahead)
        self.begun: deque[Request] = deque()
        """Requests whose answers are not read, in the order of the prompts."""
        self.bell = Bell()
        self.scope = anyio.CancelScope()
        self.over = self.left = False
        self.failure: BaseException | None = None
        """What the prompts raised, or asking."""
        self.torn = True
        """Whether it ended before the prompts did."""

    async def run(self) -> None:
        """Until the prompts end, somebody fails, or nobody reads."""
        try:
            with self.scope, self._core.feeding():
                await self._feed()
        except BaseException as error:
            if ends_this_task(error):
                raise
            self.failure = error
            if isinstance(error, asyncio.CancelledError | GeneratorExit):  # of something that the prompts waited for
                self.failure = RuntimeError(f"the prompts raised {type(error).__name__}")
                self.failure.__cause__ = error
        finally:
            self.over = True
            self.bell.ring()

    async def _feed(self) -> None:
        async with aclosing(_asynchronous(self._prompts)) as prompts:
            for place in count():
                await self.room.acquire()
                try:
                    prompt = await anext(prompts)
                except StopAsyncIteration:
                    self.torn = False
                    return
                if self.left:
                    return
                await self._begin(self._ask(place, prompt))

    async def _begin(self, asked: Asked) -> None:
        began = monotonic()
        try:
            with within(asked.timeout):
                request = await self._core.enter(asked)
        except TimeoutError as error:  # before it was let in
            request = Request(asked.prompt, asked.priority, 0)
            request.finish(error)
        if self.left:  # at the same moment
            self._core.abandon(request)
            return
        if asked.timeout is not None:
            left = asked.timeout - (monotonic() - began)
            timer = self._core.loop.call_later(left, self._core.expire, request, asked.timeout)
            request.when_finished.append(lambda _: timer.cancel())
        request.when_finished.append(lambda _: self.bell.ring())
        self.begun.append(request)
        self.bell.ring()

    def leave(self) -> None:
        """Nobody reads any more."""
        self.left = True
        self.scope.cancel()
        while self.begun:
            self._core.abandon(self.begun.popleft())


class Answers(Leaving):
    """Completions, to be read with ``async for``. Leaving an ``async with`` block around it ends everything at once,
    and so does cancelling whoever reads.
    """

    def __init__(
        self, core: Core, prompts: Prompts, ask: Callable[[int, Question], Asked], *, ordered: bool, ahead: int
    ) -> None:
        self._core, self._ordered = core, ordered
        self._feed = _Feed(core, prompts, ask, ahead)
        self._begun = self._left = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Completion:
        try:
            return await self._read()
        except BaseException:
            self._leave()
            raise

    async def _read(self) -> Completion:
        self._core.check_loop()
        if not self._begun:
            self._begun = True
            self._core.gate.check()
            self._core.feeders.start_soon(self._feed.run)
        feed = self._feed
        while not self._left:
            if (request := self._next()) is not None:
                feed.room.release()
                return _as_value(request)
            if feed.over and not feed.begun:
                if feed.failure is not None:
                    raise feed.failure
                if feed.torn:
                    raise await self._core.cause()
                break
            await feed.bell.wait()
        raise StopAsyncIteration

    def __del__(self) -> None:
        if self._begun and not self._left:
            on_loop(self._core.loop, self._feed.leave)

    def _leave(self) -> None:
        self._left = True
        self._feed.leave()

    def _next(self) -> Request | None:
        """The next request that is finished, taken out."""
        begun = self._feed.begun
        for place, request in enumerate(begun):
            if request.finished.is_set():
                del begun[place]
                return request
            if self._ordered:
                return None
        return None


async def _asynchronous(prompts: Prompts) -> AsyncGenerator[Question, None]:
    """The prompts, one by one; in the end what gives them is closed, if it can be, and has some seconds for that."""
    if not isinstance(prompts, AsyncIterable):
        with closing(iter(prompts)) if isinstance(prompts, Generator) else nullcontext(prompts) as given:
            for prompt in given:
                yield prompt
        return
    asked = aiter(prompts)
    try:
        async for prompt in asked:
            yield prompt
    finally:
        if isinstance(asked, AsyncGenerator):
            with anyio.move_on_after(CLOSING_SECONDS, shield=True):
                await asked.aclose()


def _as_value(request: Request) -> Completion:
    """The completion, or one that says why there is none. What ends the engine is raised."""
    outcome = request.outcome()
    if isinstance(outcome, Completion):
        return outcome
    if isinstance(outcome, BackendFailed | EngineClosed):
        raise outcome
    reason: FinishReason = "error" if isinstance(outcome, TimeoutError) else "refused"
    why = getattr(outcome, "message", None) or f"{type(outcome).__name__}: {outcome}"
    return Completion(request.prompt, "", 0, 0.0, reason, why, retryable=False)
