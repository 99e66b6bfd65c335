"""The counters of an engine of slots, in the terms that other backends use too."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

from asyncgen.metrics import BackendSnapshot

__all__ = ["SlotMeter"]


class SlotMeter:
    """Counts what one thread does; its state is one tuple that is replaced as a whole, so any thread may read it.

    Slots know no batches. For estimates that think in batches, one is the work of as many rows as ran on average: so a
    batch takes as long as a row stays, and its fill is the share of slots that were in use.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._state: tuple[BackendSnapshot, float | None, float] = (BackendSnapshot(slots=slots), None, 0.0)

    def snapshot(self) -> BackendSnapshot:
        """The counters, up to now."""
        counted, began, occupied = self._state
        if began is not None:
            now = max(0.0, perf_counter() - began)
            counted = replace(counted, busy_seconds=counted.busy_seconds + now)
            occupied += now * counted.rows_running
        if not counted.rows_filled or not occupied:
            return counted
        running = max(1.0, occupied / counted.busy_seconds)
        batches = max(1, round(counted.rows_filled / running))
        return replace(counted, batches=batches, rows_offered=round(counted.rows_filled * self._slots / running))

    def admitted(self, rows: int, prompt_tokens: int) -> None:
        """Counts rows that were given slots, and the tokens of theirs that are computed."""
        counted, began, occupied = self._state
        counted = replace(counted, rows_filled=counted.rows_filled + rows, cells=counted.cells + prompt_tokens)
        self._state = (counted, began, occupied)

    def prefixes(self, hits: int, misses: int) -> None:
        """Notes how many rows found their shared beginning computed, and how many beginnings were computed, in all."""
        counted, began, occupied = self._state
        self._state = (replace(counted, prefix_hits=hits, prefix_misses=misses), began, occupied)

    def running(self, rows: int, tokens: int = 0) -> None:
        """Counts ``tokens`` more, and the time since the last call, in which others ran; from now on ``rows`` do."""
        counted, began, occupied = self._state
        now = perf_counter()
        if began is not None:
            occupied += (now - began) * counted.rows_running
            counted = replace(counted, busy_seconds=counted.busy_seconds + now - began)
        counted = replace(counted, rows_running=rows, generated=counted.generated + tokens)
        self._state = (counted, now if rows else None, occupied)

    def out_of_memory(self) -> None:
        """Counts prompts that did not fit together."""
        counted, began, occupied = self._state
        self._state = (replace(counted, out_of_memory=counted.out_of_memory + 1), began, occupied)
