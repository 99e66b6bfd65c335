"""The decoder with fixed shapes, played on a CPU: the same passes in the same order, called and not captured."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from asyncgen.backends.decoding import Row
from asyncgen.backends.loading import Loaded
from asyncgen.backends.sampling import Sampler
from asyncgen.backends.sampling_passes import Passes
from asyncgen.backends.slots.cache import LayerShape
from asyncgen.backends.slots.gpu.decoder import FixedDecoder, PagedPrefix
from asyncgen.backends.slots.gpu.lanes import Attention
from asyncgen.backends.slots.gpu.recording import Called
from asyncgen.backends.slots.gpu.tickets import Widths
from tests.backends.slots.gpu.plain import PlainAttention
from tests.backends.slots.play import Part
from tests.backends.slots.tiny import VOCABULARY


class FixedStage:
    """A decoder, and what its rows said: tokens and log-probabilities by index."""

    def __init__(
        self,
        loaded: Loaded,
        layers: Sequence[LayerShape],
        slots: int,
        *,
        width: int = 128,
        pages: int = 96,
        steps: int = 3,
        attention: Attention | None = None,
        passes: Passes | None = None,
        eos_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.said: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[float | None]] = {}
        self.ended: list[int] = []
        self._prefixes: dict[tuple[int, ...], PagedPrefix] = {}
        self._eos_ids = eos_ids
        widths = Widths(tokens=width, rows=min(slots, 8), pages=8, prefix_pages=4, slots=slots, prefixes=5)
        self.decoder = FixedDecoder(
            loaded.model,
            layers,
            widths=widths,
            pages=pages,
            prefix_pages=12,
            vocabulary=VOCABULARY,
            eos_ids=eos_ids,
            attention=attention or PlainAttention(),
            sampler=Sampler(slots, VOCABULARY, torch.device("cpu"), passes),
            recorder=Called(),
            steps=steps,
        )
        self.decoder.settle = self._settle

    def fits(self, parts: Sequence[Part]) -> bool:
        """Whether they may be admitted together now."""
        decoder = self.decoder
        tokens = sum(len(part.own) for part in parts)
        pages = sum(part.seat(None).pages_needed for part in parts)
        return (
            decoder.free >= len(parts) <= decoder.most_rows
            and (tokens <= decoder.together or len(parts) == 1)
            and pages <= decoder.room
        )

    def admit(self, parts: Sequence[Part]) -> None:
        """Parts with one prefix, for which there is room."""
        beginning = parts[0].prefix
        if beginning and beginning not in self._prefixes:
            self._prefixes[beginning] = self.decoder.prefix(beginning)
        for part in parts:
            self.said[part.index], self.logprobs[part.index] = [], []
        self.decoder.admit([part.seat(self._prefixes.get(beginning)) for part in parts])

    def step(self) -> None:
        self.ended += [seat.row.prompt.index for seat in self.decoder.step()]

    def remove(self, index: int) -> None:
        """Ends a row before its time."""
        for seat in [seat for seat in self.decoder.seats if seat.row.prompt.index == index]:
            seat.row.end("cancelled")
            self.decoder.remove(seat)

    def finish(self) -> None:
        while self.decoder.live:
            self.step()

    def _settle(self, row: Row, token: int, broken: bool, logprob: float | None) -> None:
        if row.advance(token, self._eos_ids, broken=broken, logprob=logprob):
            self.said[row.prompt.index].append(token)
            self.logprobs[row.prompt.index].append(logprob)
