"""Window, PromptPool and choose(): what may be planned, what waits for the generator, and who goes next.

``choose`` is a pure function; ``Window`` and ``PromptPool`` live on the event loop and share one ``Bell``, so whatever
changes what a waiter waits for wakes it. Nothing here waits by the clock. Knows nothing about torch, files or models.

The flow has a cycle (rejected prompts come back), so closing streams alone never ends it: the pool closes when the
producer has ended and no index is undecided, and ``Window`` is the one counter that knows (DESIGN, "end of work").
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from types import MappingProxyType

import anyio

from asyncgen.records import Prompt

_log = logging.getLogger(__name__)

__all__ = ["CANDIDATES", "PATIENCE", "Batch", "Bell", "PromptPool", "Waiting", "Window", "choose"]

PATIENCE = 4
"""Batches that may pass over the most urgent prompt; the next one includes it."""

CANDIDATES = 4096
"""Waiting prompts, the most urgent ones, among which a batch is chosen; four times its rows, if that is more. The
choice is made on the event loop, for some microseconds a candidate.
"""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A prompt as ``choose`` sees it."""

    index: int
    """Place in the plan. Output is in index order, so the lowest is the most urgent; a retry usually is."""
    length: int
    """Tokens the prompt occupies."""
    new_tokens: int
    """Tokens its row may grow by."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What ``choose`` chose: positions in the sequence it was given, longest prompt first."""

    positions: tuple[int, ...]
    full: bool
    """Whether it is worth starting without waiting for more prompts."""


def choose(
    waiting: Sequence[Waiting],
    rows: int,
    *,
    tokens: int | None = None,
    spread: float = 0.0,
    due: bool = False,
) -> Batch:
    """The next batch: of all runs of neighbours in length order, the one with most rows; among equals the one
    with the most urgent prompt, then the one that pads least.

    At most ``rows`` prompts. The cells of the batch, rows x (longest prompt + most new tokens waiting), stay within
    ``tokens`` unless the batch is a single prompt. The shortest prompt is at least ``spread`` times as long as the
    longest (1.0: all equally long), so padding is at most ``1 - spread`` of the prompt cells. With ``due`` the batch
    includes the lowest index.

    A batch is ``full`` when ``rows`` or ``tokens`` leaves no room for another prompt, or when it is ``due``.
    Costs a sort and one pass.
    """
    if not waiting:
        return Batch((), full=False)
    # Every batch waits for this, so what can be done by sorted, min and zip is not done in a loop.
    keys = sorted([(-each.length, each.index, place) for place, each in enumerate(waiting)])
    lengths = [-key[0] for key in keys]
    indices = [key[1] for key in keys]
    sums = [0, *accumulate(lengths)]
    grow = max([each.new_tokens for each in waiting])
    urgent = indices.index(min(indices))

    best: tuple[int, bool, float] = (0, False, 0.0)
    chosen = (0, 0, False)
    end = 0
    for first, longest in enumerate(lengths):
        room = rows if tokens is None else max(1, min(rows, tokens // max(1, longest + grow)))
        end = max(end, first)
        while end < len(keys) and end - first < room and lengths[end] >= spread * longest:
            end += 1
        count = end - first
        if count < best[0]:
            if end == len(keys):
                break  # all that follow are shorter still
            continue
        has_urgent = first <= urgent < end
        if due and not has_urgent:
            continue
        padding = 1 - (sums[end] - sums[first]) / (max(1, longest) * count)
        score = (count, has_urgent, -padding)
        if score > best:
            best, chosen = score, (first, end, due or count == room)
    return Batch(tuple([key[2] for key in keys[chosen[0] : chosen[1]]]), full=chosen[2])


class Bell:
    """Wakes everybody who waits; the waiters look for themselves what changed."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        self.next: Bell | None = None
        """Another one that rings with this one."""

    def ring(self) -> None:
        """Wakes all present waiters."""
        self._event.set()
        self._event = anyio.Event()
        if self.next is not None:
            self.next.ring()

    async def wait(self) -> None:
        """Waits for the next ring."""
        await self._event.wait()


class Window:
    """How many indices may be planned: the one counter the flow keeps is ``planned - decided``.

    ``size`` bounds what is undecided; ``goal`` (accepted stories; None: no end) bounds ``accepted + undecided``, so
    nothing is generated that is not wanted and the last index decided is always an accepted one.
    """

    def __init__(self, size: int, goal: int | None, *, start: int = 0, accepted: int = 0) -> None:
        self.size = size
        self.goal = goal
        self.planned = start
        self.decided = start
        self.accepted = accepted
        self.bell = Bell()
        self._waited_for = False
        self.ended = False
        """Nothing will be planned any more."""
        self._last: int | None = None

    @property
    def undecided(self) -> int:
        """Indices planned and not yet decided."""
        return self.planned - self.decided

    @property
    def blocked(self) -> bool:
        """Whether the producer waits here and something must be decided before it can add a prompt."""
        return self._waited_for and self.room() == 0

    @property
    def reached(self) -> bool:
        """Whether the goal is reached."""
        return self.goal is not None and self.accepted >= self.goal

    def room(self) -> int:
        """Indices that may be planned now."""
        if self.ended or self.reached:
            return 0
        room = self.size - self.undecided
        return room if self.goal is None else min(room, self.goal - self.accepted - self.undecided)

    async def wait_for_room(self) -> int:
        """Waits until an index may be planned and returns how many may; 0 when none ever may again."""
        while not (room := self.room()):
            if self.ended or self.reached:
                return 0
            self._waited_for = True
            self.bell.ring()
            try:
                await self.bell.wait()
            finally:
                self._waited_for = False
        return room

    def plan(self, count: int) -> None:
        """Records that ``count`` more indices are planned."""
        self.planned += count

    def decide(self, *, accepted: bool) -> None:
        """Records that the next index is decided, in index order."""
        self.decided += 1
        self.accepted += accepted
        self.bell.ring()

    def end(self) -> None:
        """Ends planning: the sources ended, the goal is reached, or the run is stopping."""
        if not self.ended:
            _log.info("planning has ended with %d prompts, %d of them decided", self.planned, self.decided)
        self.ended = True
        self.bell.ring()

    def end_after(self, last: int) -> None:
        """Ends planning; what comes after index ``last`` stays undecided (a stopped run plans it again on resume)."""
        self._last = last
        self.end()

    async def wait_until_settled(self) -> None:
        """Waits until planning has ended and everything planned, or wanted by ``end_after``, is decided."""
        while not (self.ended and self.decided >= self._end):
            await self.bell.wait()

    @property
    def left(self) -> int:
        """Indices that are planned, wanted and not yet decided."""
        return max(0, self._end - self.decided)

    @property
    def _end(self) -> int:
        return self.planned if self._last is None else min(self.planned, self._last + 1)


class _Starving:
    """A clock that runs while somebody waits, on the account of whose turn it is; ``tick`` when that changes."""

    def __init__(self, whose_turn: Callable[[], str]) -> None:
        self._whose_turn = whose_turn
        self._seconds: dict[str, float] = {}
        self._cause = ""
        self._since = 0.0
        self._waiters = 0

    def tick(self, waiters: int = 0) -> None:
        """Books the time so far; ``waiters`` more (or fewer) wait from now on."""
        now = time.monotonic()
        if self._waiters:
            self._seconds[self._cause] = self._seconds.get(self._cause, 0.0) + self._waiters * (now - self._since)
        self._since = now
        self._waiters += waiters
        if self._waiters:
            self._cause = self._whose_turn()

    def seconds(self) -> Mapping[str, float]:
        """The accounts, up to now."""
        self.tick()
        return MappingProxyType(dict(self._seconds))


class PromptPool:
    """The queue between producer and generator, and the packer: the generator asks for its next batch.

    A batch is chosen among the most urgent prompts (``CANDIDATES``), and of a run that is stopping the most urgent ones
    are it. What waits here is undecided, so the window
    bounds it; a retry is let in whatever waits, for a feedback edge through a bounded queue is a deadlock. All methods
    belong to the event loop (threads come through ``anyio.from_thread``).
    """

    def __init__(self, window: Window, whose_turn: Callable[[], str] = lambda: "prompts") -> None:
        """``whose_turn`` names, while ``take`` waits, who has what it waits for."""
        self._window = window
        self._starving = _Starving(whose_turn)
        self._bell = window.bell
        self._waiting: dict[int, Prompt] = {}
        self._seen: dict[int, Waiting] = {}  # the same, as ``choose`` sees them; made once, when they come
        self._order: list[int] = []  # their indices, the most urgent first
        self._highest = window.decided - 1
        self._draining = False
        self._passed = 0
        self._urgent: int | None = None
        self._closed = False
        self.retries = 0
        """Next attempts that were put in."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def bell(self) -> Bell:
        """Rings when anything changes that ``take`` looks at."""
        return self._bell

    @property
    def closed(self) -> bool:
        """Whether ``take`` has nothing more to give."""
        return self._closed

    @property
    def starved_by(self) -> Mapping[str, float]:
        """Seconds that takers waited, up to now, by whose turn it was."""
        return self._starving.seconds()

    def turn_changed(self) -> None:
        """To be called when ``whose_turn`` changes without a ring of the bell."""
        self._starving.tick()

    def put(self, prompts: Iterable[Prompt]) -> None:
        """Adds fresh prompts, or next attempts. A pool that drains or is closed lets go of what it does not want: the
        run is stopping, and an index that is not decided is planned again on resume.
        """
        for prompt in prompts:
            if not self._closed and not (self._draining and prompt.index > self._highest):
                if prompt.index not in self._waiting:
                    insort(self._order, prompt.index)
                self._waiting[prompt.index] = prompt
                self._seen[prompt.index] = Waiting(prompt.index, prompt.prepared.length, prompt.max_new_tokens)
                if prompt.attempt > 1:
                    self.retries += 1
                    _log.debug("index %d, attempt %d after: %s", prompt.index, prompt.attempt, prompt.history[-1:])
        self._bell.ring()

    def take_nowait(self, rows: int) -> tuple[Prompt, ...]:
        """At most ``rows`` of what waits now, the most urgent first; none if nothing waits. For engines that fill rows
        while others run: to them lengths are all the same, and what is taken in order is written soonest.
        """
        return self._remove(range(min(rows, len(self._order))))

    def take_ready(self, rows: int, *, tokens: int | None = None, spread: float = 0.0) -> tuple[Prompt, ...]:
        """The next batch, if it is full or the producer cannot add a prompt now; else none. See ``choose``."""
        batch = self._choose(rows, tokens, spread)
        return self._remove(batch.positions) if batch.full or self._producer_cannot_add else ()

    async def take(self, rows: int, *, tokens: int | None = None, spread: float = 0.0) -> tuple[Prompt, ...]:
        """The next batch: at once if a full one waits or the producer cannot add a prompt now, else when either
        comes true. Empty means that the pool is closed. See ``choose`` for the arguments.
        """
        while not self._closed:
            if prompts := self.take_ready(rows, tokens=tokens, spread=spread):
                return prompts
            self._starving.tick(+1)
            try:
                await self._bell.wait()
            finally:
                self._starving.tick(-1)
        return ()

    async def take_some(self, rows: int) -> tuple[Prompt, ...]:
        """At most ``rows`` of what waits, as soon as anything does; empty means that the pool is closed. For engines
        that fill rows while others run: whether they starve meanwhile is theirs to say (``starve``).
        """
        while not self._closed:
            if prompts := self.take_nowait(rows):
                return prompts
            await self._bell.wait()
        return ()

    def starve(self, takers: int) -> None:
        """Records that so many takers more (or fewer) have nothing to do."""
        self._starving.tick(takers)

    def drain(self) -> None:
        """Ends planning and lets go of every prompt above the highest index taken so far. What is left, retries among
        it, is what must be decided for everything taken to be written: output is in index order.
        """
        self._draining = True
        kept = bisect_right(self._order, self._highest)
        for index in self._order[kept:]:
            del self._waiting[index], self._seen[index]
        del self._order[kept:]
        self._window.end_after(self._highest)

    def close(self) -> None:
        """Ends ``take`` and lets go of what still waits. Whoever handles cancellation calls this first."""
        self._closed = True
        self._waiting.clear()
        self._seen.clear()
        self._order.clear()
        self._bell.ring()

    @property
    def _producer_cannot_add(self) -> bool:
        return self._window.blocked or self._window.ended

    def _choose(self, rows: int, tokens: int | None, spread: float) -> Batch:
        if self._draining:  # in the time that is left, as many as can be written: those that others wait for
            return choose([self._seen[index] for index in self._order[:rows]], rows, tokens=tokens, due=True)
        candidates = [self._seen[index] for index in self._order[: max(CANDIDATES, 4 * rows)]]
        batch = choose(candidates, rows, tokens=tokens, spread=spread, due=self._passed >= PATIENCE)
        # What has still to come is behind those that were not looked at: nothing to wait for.
        return replace(batch, full=True) if len(candidates) < len(self._order) else batch

    def _remove(self, positions: Sequence[int]) -> tuple[Prompt, ...]:
        chosen = tuple(self._waiting[self._order[place]] for place in positions)
        if chosen:
            urgent = self._order[0]
            for prompt in chosen:
                del self._waiting[prompt.index], self._seen[prompt.index]
            end = max(positions) + 1
            self._order[:end] = [index for index in self._order[:end] if index in self._waiting]
            self._highest = max(self._highest, *(prompt.index for prompt in chosen))
            # Counted for one prompt at a time: a retry that is more urgent starts its own count.
            passed_over = urgent in self._waiting
            self._passed = (self._passed + 1 if urgent == self._urgent else 1) if passed_over else 0
            self._urgent = urgent
            self._bell.ring()
        return chosen
