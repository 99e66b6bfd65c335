"""The decoder, played like an instrument: rows that come and go in any order, and the logits that each one saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from asyncgen.backends.decoding import Row
from asyncgen.backends.loading import Loaded
from asyncgen.backends.slots.arrangement import Beginning, Seat
from asyncgen.backends.slots.cache import LayerShape
from asyncgen.backends.slots.decoder import Decoder
from asyncgen.backends.slots.passes import Prefix
from asyncgen.records import Prepared, Prompt, Sampling
from tests.backends.slots.tiny import VOCABULARY

GREEDY = Sampling(0.0)


@dataclass(frozen=True, slots=True)
class Part:
    """What one row is asked to say."""

    index: int
    own: tuple[int, ...]
    count: int
    prefix: tuple[int, ...] = ()
    sampling: Sampling = GREEDY

    def seat(self, prefix: Beginning | None) -> Seat:
        prepared = Prepared(len(self.own), (*self.prefix, *self.own), shared=len(self.prefix))
        prompt = Prompt(self.index, (), seed=977 * self.index + 1, max_new_tokens=self.count, prepared=prepared)
        return Seat(Row(prompt, 0.0), self.own, prefix, self.sampling)


@dataclass(slots=True)
class Heard:
    """What became of it."""

    tokens: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    """[V] of each token, in the model's number format."""
    logprobs: list[float | None] = field(default_factory=list)
    broken: bool = False

    def same(self, other: Heard) -> bool:
        """To the bit; of two lengths, as far as the shorter one goes."""
        count = min(len(self.tokens), len(other.tokens))
        mine, theirs = torch.stack(self.logits[:count]), torch.stack(other.logits[:count])
        bits = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[mine.dtype]
        return self.tokens[:count] == other.tokens[:count] and torch.equal(mine.view(bits), theirs.view(bits))


class Stage:
    """A decoder whose model and rows are listened to."""

    def __init__(self, loaded: Loaded, layers: Sequence[LayerShape], slots: int, pages: int = 96) -> None:
        self._model = loaded.model
        self.device, self.dtype = loaded.model.device, loaded.model.dtype
        self.modules = loaded.model.modules
        self.heard: dict[int, Heard] = {}
        self._latest, self._place = torch.empty(0), 0
        self._prefixes: dict[tuple[int, ...], Prefix] = {}
        self.decoder = Decoder(self, layers, slots=slots, pages=pages, vocabulary=VOCABULARY, settle=self._settle)

    def __call__(self, **arguments: Any) -> Any:
        """In the model's place."""
        output = self._model(**arguments)
        self._latest, self._place = output.logits[0], 0
        return output

    def admit(self, parts: Sequence[Part]) -> None:
        """Parts with one prefix, for which there is room."""
        beginning = parts[0].prefix
        if beginning and beginning not in self._prefixes:
            self._prefixes[beginning] = self.decoder.prefix(beginning)
        self.heard.update((part.index, Heard()) for part in parts)
        self.decoder.admit([part.seat(self._prefixes.get(beginning)) for part in parts])

    def remove(self, index: int) -> None:
        """Ends a row before its time."""
        [seat] = [seat for seat in self.decoder.seats if seat.row.prompt.index == index]
        self.decoder.remove(seat)

    def finish(self) -> None:
        while self.decoder.live:
            self.decoder.step()
        assert self.decoder.cache.pages.reserved == 0
        assert self.decoder.cache.pages.used == 1

    def _settle(self, row: Row, token: int, broken: bool, logprob: float | None) -> None:
        heard = self.heard[row.prompt.index]
        heard.logits.append(self._latest[self._place].clone())
        self._place += 1
        heard.tokens.append(token)
        heard.logprobs.append(logprob)
        heard.broken = broken
        row.tokens.append(token)
        if broken:
            row.end("error")
        elif len(row.tokens) == row.prompt.max_new_tokens:
            row.end("length")


@torch.inference_mode()
def alone(loaded: Loaded, layers: Sequence[LayerShape], part: Part, slots: int = 4) -> Heard:
    """What a row hears that has the stage to itself."""
    stage = Stage(loaded, layers, slots)
    stage.admit([part])
    stage.finish()
    return stage.heard[part.index]
