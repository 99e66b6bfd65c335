"""The counters of an engine of slots."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter

from asyncgen.metrics import BackendSnapshot

__all__ = ["SlotMeter"]

LATELY = 16
"""Steps over which the pace of now is taken, roughly: each counts a sixteenth less than the next."""


@dataclass(frozen=True, slots=True)
class _State:
    counted: BackendSnapshot
    since: float | None = None
    """From when on time is to be counted; None if nothing is done."""


class SlotMeter:
    """Counts what one thread does; its state is one value that is replaced as a whole, so any thread may read it."""

    def __init__(self, slots: int) -> None:
        self._state = _State(BackendSnapshot(slots=slots))

    def snapshot(self) -> BackendSnapshot:
        """The counters, up to now."""
        state = self._state
        return state.counted if state.since is None else _after(state.counted, perf_counter() - state.since)

    def preparing(self) -> None:
        """The engine is made ready, which counts as work; until ``running`` is called."""
        self._state = _State(self._state.counted, perf_counter())

    def admitted(self, rows: int, prompt_tokens: int) -> None:
        """Counts rows that were given slots, and the tokens of theirs that are computed."""
        counted = self._state.counted
        self._count(rows_filled=counted.rows_filled + rows, cells=counted.cells + prompt_tokens)

    def prefixes(self, hits: int, misses: int) -> None:
        """Counts rows that found their shared beginning computed, and beginnings that were computed."""
        counted = self._state.counted
        self._count(prefix_hits=counted.prefix_hits + hits, prefix_misses=counted.prefix_misses + misses)

    def running(self, rows: int, tokens: int = 0) -> None:
        """Counts ``tokens`` more, and the time since the last call, in which others ran; from now on ``rows`` do."""
        now, state = perf_counter(), self._state
        counted = state.counted
        if state.since is not None:
            counted = _after(counted, now - state.since, tokens)
        counted = replace(counted, rows_running=rows, generated=counted.generated + tokens)
        self._state = _State(counted, now if rows else None)

    def resized(self, slots: int) -> None:
        """There are so many slots now."""
        self._count(slots=slots)

    def out_of_memory(self) -> None:
        """Counts prompts that did not fit together."""
        self._count(out_of_memory=self._state.counted.out_of_memory + 1)

    def _count(self, **changes: int) -> None:
        self._state = replace(self._state, counted=replace(self._state.counted, **changes))


def _after(counted: BackendSnapshot, seconds: float, tokens: int = 0) -> BackendSnapshot:
    """The counters when the rows that run have done so for ``seconds`` more, and got ``tokens`` for it."""
    seconds, rows = max(0.0, seconds), counted.rows_running
    pace = counted.seconds_per_token
    if tokens:
        step = seconds * rows / tokens
        pace = pace + (step - pace) / LATELY if pace else step
    return replace(
        counted,
        busy_seconds=counted.busy_seconds + seconds,
        slot_seconds=counted.slot_seconds + (seconds * counted.slots if rows else 0.0),
        row_seconds=counted.row_seconds + seconds * rows,
        seconds_per_token=pace,
    )
