"""A run of the backend: each prompt is a task that asks until it has a completion, and all of them share the gate.

A prompt is taken when there is a place for it; what waits to be tried again holds none. What is the server's fault
(busy, away) is waited for as long as ``patience`` lets; what may be the prompt's own is tried ``max_retries`` times.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from random import random
from time import perf_counter

import anyio
from anyio.abc import TaskGroup

from asyncgen.backends.base import Completions, Pool
from asyncgen.backends.openai.asker import Asker
from asyncgen.backends.openai.failures import Failure, TryFailed
from asyncgen.backends.openai.gate import Gate, Ticket
from asyncgen.backends.openai.meter import ServerMeter
from asyncgen.backends.openai.pace import Pace
from asyncgen.backends.streaming import Progress
from asyncgen.config import OpenAIBackend
from asyncgen.errors import BackendFailed, ServerFailed
from asyncgen.packing import Bell
from asyncgen.records import Completion, Prompt
from asyncgen.tasks import awake, single_cause

_log = logging.getLogger(__name__)

__all__ = ["Running", "pause_after"]

WORRIED = 5.0
"""Seconds without an answer after which somebody is told."""
MANY = 10
"""Times ``max_retries`` that a prompt is put off by a server that takes others meanwhile."""
SHORTEST, LONGEST = 0.25, 20.0
"""Seconds within which a prompt is tried again: after its first failure, and after many."""


def pause_after(failures: int, share: float) -> float:
    """Seconds to wait after so many failures of one prompt: a ``share``, drawn from [0, 1), of a span that doubles each
    time, so that those who failed together do not come back together ("full jitter").
    """
    return float(share * min(LONGEST, SHORTEST * 2 ** (min(failures, 32) - 1)))


class Running:
    """Made on the event loop; ``go`` it once."""

    def __init__(
        self,
        asker: Asker,
        options: OpenAIBackend,
        rows: int,
        meter: ServerMeter,
        notice: Callable[[str], object],
        pool: Pool,
        completions: Completions,
        progress: Progress,
    ) -> None:
        self._asker, self._options, self._meter, self._notice = asker, options, meter, notice
        self._pool, self._completions, self._progress = pool, completions, progress
        self._most_held = 2 * rows  # a window is never smaller, so no completion finds its stream full
        self._bell = Bell()
        self._gate = Gate(Pace(rows), self._bell)
        self._held: dict[int, tuple[Prompt, anyio.CancelScope]] = {}
        self._failing: dict[int, _Failing] = {}
        """Of those that are held, what has failed and was not answered."""
        self._given_up: dict[int, str] = {}
        self._asked_off: tuple[float, Failure] | None = None
        """Until when, and why, nobody's run is not even tried."""
        self._answers = 0
        self._failure: ServerFailed | None = None
        self._taking = self._starving = False
        self._heard = anyio.Event()
        self._last_error = ""
        self._health = anyio.Lock()
        self._tasks: TaskGroup

    async def go(self) -> None:
        """Until the pool is closed and all that was taken has its completion. Raises ServerFailed or BackendFailed."""
        with single_cause():
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._lose_patience)
                async with anyio.create_task_group() as serving:
                    await self._feed(serving)
                self._tasks.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    def cancel(self, prompt: Prompt) -> None:
        """See ``Backend.cancel``."""
        if held := self._held.get(id(prompt)):
            held[1].cancel()

    async def _feed(self, serving: TaskGroup) -> None:
        """Takes prompts as places become free."""
        while True:
            while (room := min(self._gate.free, self._most_held - len(self._held))) <= 0:
                await self._bell.wait()
            self._look(taking=True)
            try:
                prompts = await self._pool.take_some(room)
            finally:
                self._look(taking=False)
            if not prompts:
                return
            for prompt in prompts:
                scope = anyio.CancelScope()
                self._held[id(prompt)] = (prompt, scope)
                serving.start_soon(self._serve, prompt, scope, self._gate.join(prompt.index))
            self._look()

    def _look(self, *, taking: bool | None = None) -> None:
        """Notes who waits for whom, when either changed: we for prompts, or prompts for the server."""
        self._taking = self._taking if taking is None else taking
        starving = self._taking and not self._held
        if starving != self._starving:
            self._starving = starving
            self._pool.starve(1 if starving else -1)
        self._meter.holding(len(self._held))
        if not self._held:
            self._hear()
        self._bell.ring()

    async def _serve(self, prompt: Prompt, scope: anyio.CancelScope, ticket: Ticket) -> None:
        completion = Completion(prompt, "", 0, 0.0, "cancelled", retryable=False)
        with scope:
            try:
                completion = await self._complete(prompt, ticket)
            except ServerFailed as error:  # of several at once, which may differ in their words, the first is told
                self._failure = self._failure or error
                self._tasks.cancel_scope.cancel()
                return  # without a completion: the prompt is made again
        del self._held[id(prompt)]
        self._failing.pop(id(prompt), None)
        if (why := self._given_up.pop(id(prompt), None)) and completion.finish_reason == "cancelled":
            completion = replace(completion, finish_reason="error", error=f"server: {why}")
        self._look()
        try:
            self._completions.send_nowait((completion,))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._tasks.cancel_scope.cancel()  # whoever received is gone: the run is being torn down
        except anyio.WouldBlock as error:
            raise BackendFailed("the stream of completions is too short for what was taken") from error

    async def _complete(self, prompt: Prompt, ticket: Ticket) -> Completion:
        failures = counted = 0
        failing = _Failing()
        while True:
            number = await self._gate.admit(ticket)
            if prompt.alone and (failure := self._off):
                self._gate.leave()
                return _failed(prompt, failure, "", retryable=False)
            outcome = await self._try(prompt, number, again=failures > 0)
            if isinstance(outcome, Completion):
                return outcome
            failures += 1
            counted += outcome.counts
            if failures == 1:
                self._failing[id(prompt)] = failing
                failing.answers = self._answers
            failing.own = counted > 0
            if await self._is_its_own_fault(failing, failures, counted):
                self._hear()
                return _failed(prompt, outcome, f"{failures} tries, the last one: ")
            pause = max(pause_after(failures, random()), min(outcome.wait, LONGEST) if outcome.counts else 0.0)
            _log.debug("index %d, try %d: %s; again in %.2f s", prompt.index, failures, outcome.message, pause)
            await anyio.sleep(pause)
            ticket = self._gate.join(prompt.index)

    async def _is_its_own_fault(self, failing: _Failing, failures: int, counted: int) -> bool:
        """Whether what fails is this prompt, and not the server: others have got answers since. Where nothing else is
        there to be asked, the server must say that it is well, and all but a last prompt must have failed for long.
        """
        most = self._options.max_retries
        if self._answers > failing.answers:
            return counted > most or failures > MANY * (most + 1)
        if not self._taking or not all(key in self._failing and self._failing[key].own for key in self._held):
            return False
        last_one = len(self._held) == 1 and self._answers > 0 and counted > most
        long = perf_counter() - failing.since >= self._options.patience / 2
        return (last_one or long) and await self._is_alive()

    async def _try(self, prompt: Prompt, number: int, *, again: bool) -> Completion | Failure:
        """One request; what is final of a prompt, or why it is to be tried again. Raises ServerFailed."""
        began, told = perf_counter(), 0

        def tell(piece: str) -> None:
            nonlocal told
            self._hear()  # also of a model that thinks, and says nothing yet
            if piece:
                self._progress(prompt, told, piece)
                told += len(piece)

        self._meter.tried(again=again)
        self._note_places()
        try:
            answer = await self._asker.ask(prompt, tell)
        except TryFailed as error:
            failure = error.failure
            self._draw_conclusions(failure, number)
        else:
            self._gate.pace.succeeded()
            self._hear()
            self._answers += 1
            self._meter.answered(answer.tokens or 0, answer.prompt_tokens or 0)
            return self._asker.completion(prompt, answer, perf_counter() - began)
        finally:
            self._gate.leave()
            self._note_places()
        if failure.ends == "run":
            if prompt.alone:
                return _failed(prompt, failure, "", retryable=False)
            if failure.alone and self._answers and await self._lets_in():  # a filter has something against it, say
                failure = replace(failure, ends="again", counts=True)
            else:
                raise ServerFailed(f"{self._options.base_url}: {failure.message}", hint=failure.hint)
        if self._is_too_long(failure):
            failure = replace(failure, message=f"{failure.message}; it asks to wait {failure.wait:,.0f} s")
            if prompt.alone:
                self._asked_off = perf_counter() + self._options.patience, failure
                return _failed(prompt, failure, "", retryable=False)
            raise ServerFailed(
                f"{self._options.base_url}: {failure.message}",
                hint=f"that is more than backend.patience ({self._options.patience:g} s): start the run again later",
            )
        if failure.ends == "prompt":
            self._hear()
            return Completion(prompt, "", 0, 0.0, "refused", f"refused: {failure.message}", retryable=False)
        return _failed(prompt, failure, f"after {told} characters: ") if told else failure

    def _draw_conclusions(self, failure: Failure, number: int) -> None:
        """What a failure means for all others."""
        self._last_error = failure.message
        self._meter.failed()
        if failure.overload:
            self._gate.pace.overloaded(number)
        if failure.wait and not failure.counts and not self._is_too_long(failure):
            self._gate.pause()
            self._tasks.start_soon(self._resume_after, failure.wait)

    def _is_too_long(self, failure: Failure) -> bool:
        """Whether the server asks everybody to wait for longer than anybody would. A run stops then; whoever asks for
        himself is told, and so is everybody who comes within ``patience``, after which it is tried again.
        """
        return failure.wait > self._options.patience and not failure.counts

    @property
    def _off(self) -> Failure | None:
        """Why nothing is tried for those who ask for themselves, if so."""
        return self._asked_off[1] if self._asked_off and perf_counter() < self._asked_off[0] else None

    async def _resume_after(self, seconds: float) -> None:
        await anyio.sleep(seconds)
        self._gate.resume()

    async def _lets_in(self) -> bool:
        """Whether the server tells us its models: then the key is good, and the address too."""
        async with self._health:
            return await self._asker.is_let_in()

    async def _is_alive(self) -> bool:
        """Whether the server says so of itself, asked by one at a time."""
        async with self._health:
            return await self._asker.is_alive()

    def _note_places(self) -> None:
        self._meter.flying(self._gate.pace.in_flight, self._gate.pace.limit)

    def _hear(self) -> None:
        """The server gave something, or nothing is wanted of it."""
        self._heard.set()
        self._meter.heard()
        self._last_error = ""

    async def _lose_patience(self) -> None:
        """Raises ServerFailed when nothing was heard for ``patience`` seconds, though prompts were held; says so long
        before, if there were errors.
        """
        url, patience = self._options.base_url, self._options.patience
        worried = min(WORRIED, patience)
        while True:
            while not self._held:
                await self._bell.wait()
            self._heard = anyio.Event()
            if await self._hears_within(worried):
                continue
            told = bool(self._last_error)
            if told:
                self._notice(f"{url} does not answer ({self._last_error}); it is tried for up to {patience:g} s")
            if not await self._hears_within(patience - worried):
                error = ServerFailed(
                    f"no answer from {url} for {patience:g} s; the last error: {self._last_error or 'none'}",
                    hint="what was decided is on disk; the same run goes on when the server does",
                )
                if not self._give_up(error):
                    raise error
            elif told:
                self._notice(f"{url} answers again")

    def _give_up(self, error: ServerFailed) -> bool:
        """Ends what was asked by nobody's run, whose callers are told; false if there are prompts of runs too."""
        if not all(prompt.alone for prompt, _ in self._held.values()):
            return False
        for prompt, scope in self._held.values():
            self._given_up[id(prompt)] = error.message
            scope.cancel()
        return True

    async def _hears_within(self, seconds: float) -> bool:
        with anyio.CancelScope() as scope, awake(seconds, scope.cancel):
            await self._heard.wait()
        return not scope.cancelled_caught


class _Failing:
    """A prompt that is being tried again and again."""

    def __init__(self) -> None:
        self.since = perf_counter()
        self.answers = 0
        """Answers to others when it failed first."""
        self.own = False
        """Whether it has failed in a way that may be its own fault."""


def _failed(prompt: Prompt, failure: Failure, when: str, *, retryable: bool = True) -> Completion:
    return Completion(prompt, "", 0, 0.0, "error", f"server: {when}{failure.message}", retryable=retryable)
