"""The counters of a backend: written by whoever generates, read by anybody at any moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter

from asyncgen.metrics import BackendSnapshot

__all__ = ["Meter"]


class Meter:
    """Counts what one writer does. Its state is one tuple that is replaced as a whole, so a reader in another thread
    never sees half a change, and no lock is needed.
    """

    def __init__(self) -> None:
        self._state: tuple[BackendSnapshot, float | None] = (BackendSnapshot(), None)

    def snapshot(self) -> BackendSnapshot:
        """The counters, with the time of the batch in progress up to now."""
        counted, began = self._state
        if began is None:
            return counted
        return replace(counted, busy_seconds=counted.busy_seconds + max(0.0, perf_counter() - began))

    @contextmanager
    def batch(self, *, filled: int, offered: int, cells: int = 0, padded_cells: int = 0) -> Iterator[None]:
        """Counts a batch of ``filled`` prompts in ``offered`` rows, and the time until it ends, however it ends."""
        began = perf_counter()
        counted, _ = self._state
        counted = replace(
            counted,
            batches=counted.batches + 1,
            rows_running=filled,
            rows_filled=counted.rows_filled + filled,
            rows_offered=counted.rows_offered + offered,
            cells=counted.cells + cells,
            padded_cells=counted.padded_cells + padded_cells,
        )
        self._state = (counted, began)
        try:
            yield
        finally:
            counted, _ = self._state
            seconds = counted.busy_seconds + perf_counter() - began
            self._state = (replace(counted, busy_seconds=seconds, rows_running=0), None)

    def progress(self, tokens: int, finished: int = 0) -> None:
        """Counts ``tokens`` more, and ``finished`` rows fewer that run."""
        counted, began = self._state
        running = counted.rows_running - finished
        self._state = (replace(counted, generated=counted.generated + tokens, rows_running=running), began)

    def out_of_memory(self) -> None:
        """Counts a batch that did not fit."""
        counted, began = self._state
        self._state = (replace(counted, out_of_memory=counted.out_of_memory + 1), began)
