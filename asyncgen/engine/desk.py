"""What waits for the model: requests, the most urgent first, and behind them the pools of runs.

The backend takes its prompts here and brings its completions back here; to it a desk is a pool like any other. Each
completion goes to whoever the prompt was from. All of it belongs to the event loop.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter

import anyio

from asyncgen.backends import Completions, Piece
from asyncgen.engine.request import Request
from asyncgen.errors import AsyncgenError, BackendFailed
from asyncgen.packing import CANDIDATES, Bell, PromptPool, Waiting, choose
from asyncgen.records import Completion, Prompt

__all__ = ["Desk", "Lane"]

_URGENCY = attrgetter("urgency")


class Lane:
    """The pool of a run, and where its completions go."""

    def __init__(self, pool: PromptPool, completions: Completions) -> None:
        self.pool, self.completions = pool, completions
        self.held: dict[int, Prompt] = {}
        """What the model has of it, by identity."""
        self.failure: AsyncgenError | None = None

    @property
    def over(self) -> bool:
        """Whether everything that was taken is answered and no more will come, or all of it failed."""
        return self.failure is not None or (self.pool.closed and not self.held)

    def send(self, completions: list[Completion]) -> None:
        """Hands completions over."""
        for completion in completions:
            del self.held[id(completion.prompt)]
        try:
            self.completions.send_nowait(tuple(completions))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # whoever received them is gone: the run is being torn down, and has its own error
        except anyio.WouldBlock as error:
            self.failure = BackendFailed("the stream of completions is too short for what was taken")
            self.failure.__cause__ = error


class Desk:
    """Made on the event loop. ``cancel`` is how the model is told that a prompt it has is not wanted any more."""

    def __init__(self, cancel: Callable[[Prompt], object]) -> None:
        self._cancel = cancel
        self._bell = Bell()
        self._waiting: list[Request] = []
        self._lanes: deque[Lane] = deque()
        self._holders: dict[int, Request | Lane] = {}  # of the prompts that the model has, by identity
        self._starving = 0
        self._closed = False
        self._cause: Callable[[], AsyncgenError] | None = None

    @property
    def waiting(self) -> int:
        """Requests that the model does not have yet."""
        return len(self._waiting)

    @property
    def closed(self) -> bool:
        """Whether nothing is given to the model any more."""
        return self._closed

    # What the backend calls: see ``backends.base.Pool`` and ``Completions``.

    async def take(self, rows: int, *, tokens: int | None = None, spread: float = 0.0) -> tuple[Prompt, ...]:
        """The next batch, of requests or of one run. What requests there are is a batch: whoever waits does so now."""
        while not self._closed:
            if self._waiting:
                return self._batch_of_requests(rows, tokens, spread)
            for lane in self._in_turn():
                if prompts := lane.pool.take_ready(rows, tokens=tokens, spread=spread):
                    return self._held_by(lane, prompts)
            self.starve(+1)
            try:
                await self._bell.wait()
            finally:
                self.starve(-1)
        return ()

    async def take_some(self, rows: int) -> tuple[Prompt, ...]:
        """Requests, the most urgent first, and then what runs have."""
        while not self._closed:
            prompts = self._take_requests(range(min(rows, len(self._waiting))))
            for lane in self._in_turn():
                if len(prompts) < rows:
                    prompts += self._held_by(lane, lane.pool.take_nowait(rows - len(prompts)))
            if prompts:
                return prompts
            await self._bell.wait()
        return ()

    def starve(self, takers: int) -> None:
        """The runs are told: it is their prompts that lack."""
        self._starving += takers
        for lane in self._lanes:
            lane.pool.starve(takers)

    def close(self) -> None:
        """Ends ``take`` and ``take_some``."""
        self._closed = True
        self._bell.ring()

    def send_nowait(self, completions: tuple[Completion, ...], /) -> None:
        """Hands each completion to whoever the prompt was from."""
        lanes: dict[int, tuple[Lane, list[Completion]]] = {}
        for completion in completions:
            holder = self._holders.pop(id(completion.prompt), None)
            if isinstance(holder, Request):
                holder.finish(completion)
            elif holder is not None:
                lanes.setdefault(id(holder), (holder, []))[1].append(completion)
        for lane, its in lanes.values():
            lane.send(its)
            if lane.over:
                self._bell.ring()

    def progress(self, prompt: Prompt, at: int, piece: Piece, /) -> None:
        """Hands on a piece of an answer that is streamed."""
        if isinstance(holder := self._holders.get(id(prompt)), Request):
            holder.grow(at, piece)

    # What the engine calls.

    def put(self, request: Request) -> None:
        """Adds a request, whose prompt is prepared."""
        insort(self._waiting, request, key=_URGENCY)
        self._bell.ring()

    def drop(self, request: Request) -> bool:
        """Lets go of a request. Returns whether it is gone; else the model has it, and its completion will come."""
        if self._holders.get(id(request.prompt)) is request:
            self._cancel(request.prompt)
            return False
        place = bisect_left(self._waiting, request.urgency, key=_URGENCY)
        if place < len(self._waiting) and self._waiting[place] is request:
            del self._waiting[place]
        return True

    async def serve(self, pool: PromptPool, completions: Completions) -> None:
        """Lets the model take from ``pool`` too, until it is closed and everything taken is answered."""
        if self._cause is not None:
            raise self._cause()
        with self._lane(pool, completions) as lane:
            while not lane.over:
                await self._bell.wait()
        if lane.failure is not None:
            raise lane.failure

    def fail(self, cause: Callable[[], AsyncgenError]) -> None:
        """Ends everything that is here: each run gets an error of its own. The requests know already."""
        self.close()
        self._cause = cause
        self._waiting.clear()
        self._holders.clear()
        for lane in self._lanes:
            lane.failure = lane.failure or cause()
        self._bell.ring()

    @contextmanager
    def _lane(self, pool: PromptPool, completions: Completions) -> Iterator[Lane]:
        lane = Lane(pool, completions)
        self._lanes.append(lane)
        pool.bell.next = self._bell
        pool.starve(self._starving)
        self._bell.ring()
        try:
            yield lane
        finally:
            self._lanes.remove(lane)
            pool.bell.next = None
            pool.starve(-self._starving)
            for key, prompt in lane.held.items():
                self._holders.pop(key, None)
                self._cancel(prompt)

    def _in_turn(self) -> tuple[Lane, ...]:
        """The runs, each time beginning with another one."""
        self._lanes.rotate(-1)
        return tuple(self._lanes)

    def _batch_of_requests(self, rows: int, tokens: int | None, spread: float) -> tuple[Prompt, ...]:
        candidates = [
            Waiting(place, request.prompt.prepared.length, request.prompt.max_new_tokens)
            for place, request in enumerate(self._waiting[: max(CANDIDATES, 4 * rows)])
        ]
        return self._take_requests(choose(candidates, rows, tokens=tokens, spread=spread, due=True).positions)

    def _take_requests(self, places: range | tuple[int, ...]) -> tuple[Prompt, ...]:
        taken = [self._waiting[place] for place in places]
        for place in sorted(places, reverse=True):
            del self._waiting[place]
        self._holders.update((id(request.prompt), request) for request in taken)
        return tuple(request.prompt for request in taken)

    def _held_by(self, lane: Lane, prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
        held = {id(prompt): prompt for prompt in prompts}
        lane.held.update(held)
        self._holders.update(dict.fromkeys(held, lane))
        return prompts
