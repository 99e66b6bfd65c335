"""The inside of an engine that is open: requests come in by the gate, are prepared, wait at the desk, and go out with
their answers. Lives on the event loop; ``engine`` is what others see of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count

import anyio
import anyio.to_thread

from asyncgen.backends import Backend
from asyncgen.engine.asking import Asked
from asyncgen.engine.desk import Desk
from asyncgen.engine.gate import Gate
from asyncgen.engine.request import Request
from asyncgen.engine.waiting import too_late
from asyncgen.errors import AsyncgenError, BackendFailed
from asyncgen.packing import Bell
from asyncgen.records import Completion, Prepared, Prompt
from asyncgen.tasks import single_cause

__all__ = ["Core", "Counts"]

GROUP = 32
"""Prompts prepared at a time, off the event loop."""


class Counts:
    """What became of the requests so far."""

    finished = failed = cancelled = tokens = 0


class Core:
    """See the module. ``run`` it once, in a task of its own."""

    def __init__(self, backend: Backend, max_requests: int | None) -> None:
        self.backend = backend
        self.desk = Desk(backend.cancel)
        self.gate = Gate(max(256, 4 * backend.limits.rows) if max_requests is None else max_requests)
        self.counts = Counts()
        self.feeders = anyio.create_task_group()
        """Tasks that bring requests for somebody else; they end with the engine."""
        self._feeding: set[asyncio.Task[object] | None] = set()
        self.loop = asyncio.get_running_loop()
        self._failed = anyio.Event()
        self._cause: Callable[[], AsyncgenError] | None = None
        self._numbers = count()
        self._open: set[Request] = set()
        self._fresh: list[Request] = []
        self._bell = Bell()

    @property
    def requests(self) -> int:
        """Those that are in."""
        return len(self._open)

    async def run(self) -> None:
        """Works until the desk is closed and all that was taken there is answered. Raises what the backend does."""
        with single_cause():
            async with self.feeders:
                self.feeders.start_soon(self._prepare)
                await self.backend.run(self.desk, self.desk, self.desk.progress)
                self.feeders.cancel_scope.cancel()
        if not self.desk.closed:
            raise BackendFailed("the backend ended while the engine was open")

    @asynccontextmanager
    async def requested(self, asked: Asked) -> AsyncIterator[Request]:
        """Lets a request in, which is let go of at the end if it is not finished. Raises EngineFull or EngineClosed."""
        request = await self.enter(asked)
        try:
            yield request
        finally:
            self.abandon(request)

    async def enter(self, asked: Asked) -> Request:
        """Lets a request in as soon as there is room. It goes out when it is finished."""
        request = Request(asked.prompt, asked.priority, next(self._numbers))
        await self.gate.enter(request.urgency, wait=asked.when_full == "wait")
        request.when_gone.append(self._goes)
        self._open.add(request)
        self._fresh.append(request)
        self._bell.ring()
        return request

    def abandon(self, request: Request) -> None:
        """Nobody waits for this request any more; it goes out at once, or when the model is told."""
        request.wanted = False
        if self.desk.drop(request):
            request.finish(Completion(request.prompt, "", 0, 0.0, "cancelled", retryable=False))

    @contextmanager
    def feeding(self) -> Iterator[None]:
        """Notes that the present task is one of ``feeders``."""
        task = asyncio.current_task()
        self._feeding.add(task)
        try:
            yield
        finally:
            self._feeding.discard(task)

    @property
    def is_fed_here(self) -> bool:
        """Whether the present task is one of ``feeders``, which end before the engine does."""
        return asyncio.current_task() in self._feeding

    def expire(self, request: Request, seconds: float) -> None:
        """Ends the waiting for a request that has taken too long."""
        request.conclude(too_late(seconds))
        self.abandon(request)

    def check(self) -> None:
        """Raises why everything has ended, if it has. For any thread."""
        if self._cause is not None:
            raise self._cause()

    def check_loop(self) -> None:
        """Raises RuntimeError on another event loop than the engine's."""
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError(
                "this engine lives on another event loop; call `engine.blocking()` there, and its methods here"
            )

    async def cause(self) -> AsyncgenError:
        """Why everything has ended, as soon as that is known."""
        await self._failed.wait()
        assert self._cause is not None, "set together"
        return self._cause()

    async def wait_until_idle(self) -> None:
        """Waits until no request is in."""
        while self._open:
            await self._bell.wait()

    def fail(self, cause: Callable[[], AsyncgenError]) -> None:
        """Ends everything: whoever waits for anything gets an error of its own."""
        self._cause = cause
        self._failed.set()
        self.gate.close(cause)
        for request in tuple(self._open):
            request.finish(cause())
        self.desk.fail(cause)

    def _goes(self, request: Request) -> None:
        outcome, counts = request.outcome(), self.counts
        if not request.wanted:
            counts.cancelled += 1
        elif isinstance(outcome, Exception) or outcome.finish_reason in ("error", "refused"):
            counts.failed += 1
        else:
            counts.finished += 1
        counts.tokens += 0 if isinstance(outcome, Exception) else outcome.tokens
        self._open.discard(request)
        self.gate.leave()
        self._bell.ring()

    async def _prepare(self) -> None:
        """Renders and tokenises the requests that came in, in groups, off the loop."""
        limiter = anyio.CapacityLimiter(1)  # our own, never the application's default tokens
        while True:
            while not self._fresh:
                await self._bell.wait()
            self._fresh.sort(key=lambda request: request.urgency)
            group, self._fresh = [each for each in self._fresh[:GROUP] if each.wanted], self._fresh[GROUP:]
            for request, outcome in await anyio.to_thread.run_sync(self._prepared, group, limiter=limiter):
                if isinstance(outcome, Exception):
                    request.finish(outcome)
                elif request.wanted:
                    request.prompt = outcome
                    self.desk.put(request)

    def _prepared(self, group: Sequence[Request]) -> list[tuple[Request, Prompt | Exception]]:
        done: list[tuple[Request, Prompt | Exception]] = []
        known: dict[tuple[int, int, int], Prepared] = {}  # many answers may be wanted to one question
        for request in group:
            prompt = request.prompt
            key = (id(prompt.asked), prompt.max_new_tokens, prompt.shared)
            try:
                if key not in known:
                    known[key] = self.backend.prepare(prompt.asked, prompt.max_new_tokens, prompt.shared)
            except Exception as error:  # noqa: BLE001  # whoever asked is told
                done.append((request, error))
            else:
                done.append((request, prompt.with_prepared(known[key])))
        return done
