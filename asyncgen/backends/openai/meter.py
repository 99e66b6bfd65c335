"""The counters of a server's backend: written on the event loop, read by anybody."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

from asyncgen.metrics import BackendSnapshot

__all__ = ["ServerMeter"]


class ServerMeter:
    """Its state is one value that is replaced as a whole. A server is at work as long as we hold prompts for it, those
    that wait to be tried again among them: nothing else is waited for then.
    """

    def __init__(self, limit: int) -> None:
        self._state: tuple[BackendSnapshot, float | None] = (BackendSnapshot(in_flight_limit=limit), None)
        self._answered = perf_counter()
        self._failing_since: float | None = None
        """When there was the last answer, if requests have failed since; else None."""

    def snapshot(self) -> BackendSnapshot:
        """The counters, up to now."""
        counted, heard = self._counted(), self._failing_since
        return counted if heard is None else replace(counted, unanswered_seconds=perf_counter() - heard)

    def heard(self) -> None:
        """There was an answer."""
        self._answered, self._failing_since = perf_counter(), None

    def failed(self) -> None:
        """There was none to a request."""
        if self._failing_since is None:
            self._failing_since = self._answered

    def _counted(self) -> BackendSnapshot:
        counted, since = self._state
        if since is None:
            return counted
        return replace(counted, busy_seconds=counted.busy_seconds + max(0.0, perf_counter() - since))

    def holding(self, prompts: int) -> None:
        """From now on so many prompts are held."""
        counted, since = self._counted(), self._state[1]
        now = None if not prompts else perf_counter()
        if since is None and now is None:
            return
        self._state = (counted, now)

    def flying(self, rows: int, limit: int) -> None:
        """Now so many requests of at most ``limit`` are in flight."""
        self._count(rows_running=rows - self._state[0].rows_running, in_flight_limit=limit - self._limit)

    def tried(self, *, again: bool) -> None:
        """Counts a request that is sent."""
        self._count(tries=1, tried_again=int(again), rows_filled=1)

    def answered(self, tokens: int, prompt_tokens: int) -> None:
        """Counts what an answer took."""
        self._count(generated=tokens, prompt_tokens=prompt_tokens)

    @property
    def _limit(self) -> int:
        return self._state[0].in_flight_limit

    def _count(self, **more: int) -> None:
        counted, since = self._state
        self._state = (replace(counted, **{name: getattr(counted, name) + n for name, n in more.items()}), since)
