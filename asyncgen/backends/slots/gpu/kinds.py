"""The passes that are ready to be queued: a step and prompts, for each kind of sampling that has been met."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import astuple, replace
from typing import NamedTuple

from asyncgen.backends.sampling_parameters import Needs
from asyncgen.backends.slots.gpu.passes import FixedPasses
from asyncgen.backends.slots.gpu.recording import Recorder

_log = logging.getLogger(__name__)

__all__ = ["MOST", "Kinds", "Ready"]

MOST = 8
"""Kinds of sampling for which passes of their own are recorded; beyond, one kind does for all."""
_FEWEST_K = 64


class Ready(NamedTuple):
    """What queues the passes of one kind."""

    step: Callable[[], object]
    prefill: Callable[[], object]


class Kinds:
    """Records ``passes`` as they are needed, ``aside``: in a context in which they may be called for trial."""

    def __init__(
        self,
        passes: FixedPasses,
        recorder: Recorder,
        vocabulary: int,
        aside: Callable[[Needs], AbstractContextManager[None]],
    ) -> None:
        self.recorded: dict[Needs, Ready] = {}
        self._passes, self._recorder, self._vocabulary, self._aside = passes, recorder, vocabulary, aside

    def ready(self, needs: Needs | None = None) -> Ready:
        """The passes for rows that are sampled so; those of any kind, if it does not matter.

        They are those recorded that do for such rows, with as little beside as may be. If there are none they are
        recorded, which stops everything for a second or so.
        """
        if needs is None:
            needs = next(iter(self.recorded), Needs())
        needs = self._rounded(needs)
        if enough := [kind for kind in self.recorded if kind.covers(needs)]:
            return self.recorded[min(enough, key=astuple)]
        if len(self.recorded) >= MOST:
            largest_k = needs.largest_k or self._rounded(Needs(largest_k=1)).largest_k
            needs = Needs(True, largest_k, top_p=True, min_p=True, penalty=True, logprobs=True)
        with self._aside(needs):
            step = self._record(f"a step, {needs}", lambda: self._passes.step(needs))
            prefill = self._record(f"prompts, {needs}", lambda: self._passes.prefill(needs))
        self.recorded[needs] = Ready(step, prefill)
        return self.recorded[needs]

    def _rounded(self, needs: Needs) -> Needs:
        """As few different ones as possible."""
        if not needs.largest_k:
            return needs
        power = 1 << (needs.largest_k - 1).bit_length()
        return replace(needs, largest_k=min(self._vocabulary, max(_FEWEST_K, power)))

    def _record(self, name: str, call: Callable[[], None]) -> Callable[[], object]:
        """As the recorder does. When there are others already, what cannot be recorded is called instead, and slower:
        rows are running.
        """
        try:
            return self._recorder.record(name, call)
        except Exception as error:
            if not self.recorded:
                raise
            _log.info("not captured: %s (%s: %s)", name, type(error).__name__, error)
            return call
