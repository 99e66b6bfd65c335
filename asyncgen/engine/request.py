"""Somebody who waits for one answer. Lives on the event loop; decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter

import anyio

from asyncgen.backends import Piece
from asyncgen.errors import CompletionFailed
from asyncgen.records import Completion, Prompt

__all__ = ["Request"]


class Request:
    """A prompt, how urgent it is, and in the end its completion or what came instead."""

    def __init__(self, prompt: Prompt, priority: int, number: int) -> None:
        self.prompt = prompt
        self.urgency = (-priority, number)
        """The smallest goes first."""
        self._asked_at = perf_counter()
        self.wanted = True
        """Whether somebody still waits."""
        self.finished = anyio.Event()
        self.when_finished: list[Callable[[Request], object]] = []
        self.when_gone: list[Callable[[Request], object]] = []
        """Called when nothing is made of it any more, which may be later."""
        self._gone = False
        self._outcome: Completion | Exception | None = None
        self._pieces: list[Piece] = []
        self._length = 0
        self._news = anyio.Event()

    def finish(self, outcome: Completion | Exception) -> None:
        """Ends everything: the model has it no longer."""
        self.conclude(outcome)
        if not self._gone:
            self._gone = True
            for tell in self.when_gone:
                tell(self)

    def conclude(self, outcome: Completion | Exception) -> None:
        """Ends the waiting, though the model may still have it; what comes after the first outcome is ignored."""
        if self._outcome is None:
            if isinstance(outcome, Completion):
                outcome = replace(outcome, waited=max(0.0, perf_counter() - self._asked_at - outcome.seconds))
            self._outcome = outcome
            self.finished.set()
            self._news.set()
            for tell in self.when_finished:
                tell(self)

    def grow(self, at: int, piece: Piece) -> None:
        """Takes a piece of a streamed answer, but for what is known already."""
        fresh = piece[max(0, self._length - at) :]
        if fresh:
            self._length += len(fresh)
            self._pieces.append(fresh)
            self._news.set()

    async def news(self) -> Sequence[Piece]:
        """The pieces that came since; none if the request is finished and all of them are known."""
        while not self._pieces and self._outcome is None:
            self._news = anyio.Event()
            await self._news.wait()
        pieces, self._pieces = self._pieces, []
        return pieces

    def outcome(self) -> Completion | Exception:
        """The completion, or what came instead. The request must be finished."""
        assert self._outcome is not None, "finished comes first"
        return self._outcome

    def completion(self) -> Completion:
        """The completion, if there is an answer; else raises what came instead, or CompletionFailed."""
        outcome = self.outcome()
        if isinstance(outcome, Exception):
            raise outcome
        if outcome.finish_reason not in ("stop", "length"):
            raise CompletionFailed(outcome.error or outcome.finish_reason, completion=outcome)
        return outcome
