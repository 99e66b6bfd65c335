"""The engine with fixed shapes: passes are queued, and what came out of them is read while later ones are computed.

S slots, all computed in every step. Steps come in groups: the host queues a group, then reads the one before it, so the
device has always something to do while the host looks for stop strings, hands completions over and makes the next
prompts ready; a busy interpreter costs no step while it is late by less than a group. The price: a row that the host
ends (a stop string) is computed for two groups more, and new rows begin a group later. Rows that end by themselves (end
of text, length) do nothing more on the device at once.

Everything is queued in one order, so a slot, a page or a prefix may be given to a new row as soon as the host has read
that the old one ended: whatever is still queued for the old one comes first.

What a row gets is a function of its prompt alone as far as the device's matrix products are: shapes are always the
same, and neither a slot's number nor its neighbours nor a prompt's place among the packed ones change the order in
which anything is summed up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asyncgen.backends.sampling import Sampler
from asyncgen.backends.sampling_parameters import Needs
from asyncgen.backends.slots.arrangement import Seat
from asyncgen.backends.slots.base import Settle, nobody
from asyncgen.backends.slots.cache import PAGE, LayerShape, pages_for
from asyncgen.backends.slots.gpu import tickets
from asyncgen.backends.slots.gpu.inbox import Inbox, Numbers
from asyncgen.backends.slots.gpu.kinds import Kinds
from asyncgen.backends.slots.gpu.lanes import Attention, Shared
from asyncgen.backends.slots.gpu.passes import FixedPasses, pools
from asyncgen.backends.slots.gpu.recording import Recorder, cuda_event
from asyncgen.backends.slots.gpu.state import BROKEN, NOTHING, Shape, State

__all__ = ["FixedDecoder", "PagedPrefix"]

STEPS = 4
"""Steps of a group: the host wakes up once for so many."""


@dataclass(frozen=True, slots=True, eq=False)
class PagedPrefix:
    """A shared beginning, computed once, in pages of its own."""

    tokens: tuple[int, ...]
    row: int
    """Its place in the table of prefixes."""
    pages: list[int]


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """Where the host reads a group's tokens. With numpy, which keeps the interpreter (``inbox``)."""

    there: tuple[Tensor, Tensor]
    codes: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    copied: torch.cuda.Event | None

    @classmethod
    def room(cls, state: State, *, cuda: bool) -> _Read:
        """Room for what the host reads of ``state``."""
        codes, logprobs = (torch.zeros(each.shape, dtype=each.dtype, pin_memory=cuda) for each in state.read_by_host)
        return cls((codes, logprobs), codes.numpy(), logprobs.numpy(), cuda_event() if cuda else None)


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Steps that are queued, and not read yet."""

    seats: dict[int, Seat]
    """The rows by slot, as they were."""
    read: _Read


class FixedDecoder:
    """See the module. ``slots.base.SlotDecoder`` says what its methods promise; not for two threads at once."""

    def __init__(
        self,
        model: Any,
        layers: Sequence[LayerShape],
        *,
        widths: tickets.Widths,
        pages: int,
        prefix_pages: int,
        vocabulary: int,
        eos_ids: Iterable[int],
        attention: Attention,
        sampler: Sampler,
        recorder: Recorder,
        stream: torch.cuda.Stream | None = None,
        steps: int = STEPS,
    ) -> None:
        """``pages`` are for rows, ``prefix_pages`` for shared beginnings. All memory is allocated here, but for what a
        recorder needs. Work is queued on ``stream``.
        """
        self.device: torch.device = model.device
        self.slots, self.widths, self.steps = widths.slots, widths, steps
        self.eos_ids = frozenset(eos_ids)
        """Tokens with which the device ends a row; whoever is told of one must do the same."""
        self._stream, self._sampler = stream, sampler
        self._first_prefix_page, self._all_pages = 1 + pages, 1 + pages + prefix_pages
        with self._queued():
            self._lanes = Inbox(tickets.lane_places(widths), self.device)
            self._packed = Inbox(tickets.packed_places(widths), self.device)
            self._state = State(Shape(widths.slots, widths.pages, steps), vocabulary, eos_ids, self.device)
            table = torch.zeros(widths.prefixes + 1, widths.prefix_pages, dtype=torch.int32, device=self.device)
            self._passes = FixedPasses(
                model,
                attention,
                sampler,
                self._state,
                pools(layers, self._all_pages, model.dtype, self.device),
                shared=Shared(table, torch.zeros_like(table[:, 0])),
                lanes_told=self._lanes.there,
                packed_told=self._packed.there,
            )
        self._kinds = Kinds(self._passes, recorder, vocabulary, self._unharmed)
        self._reads = cycle([_Read.room(self._state, cuda=self.device.type == "cuda") for _ in range(3)])
        self.settle: Settle = nobody
        self._free_prefix_pages: list[int] = []
        self._free_prefixes: list[int] = []
        self._no_prefixes()
        self._no_rows()

    def _no_prefixes(self) -> None:
        self._free_prefix_pages = list(range(self._all_pages - 1, self._first_prefix_page - 1, -1))
        self._free_prefixes = list(range(self.widths.prefixes - 1, -1, -1))

    def _no_rows(self) -> None:
        self._free = list(range(self.slots - 1, -1, -1))
        self._free_pages = list(range(self._first_prefix_page - 1, 0, -1))
        self._seats: dict[int, Seat] = {}
        self._queued_tokens: dict[int, int] = {}
        self._flying: deque[_Group] = deque()
        self._changed = True
        self.torn = False

    @property
    def seats(self) -> Iterable[Seat]:
        """The rows that run, as far as the host has read."""
        return self._seats.values()

    @property
    def free(self) -> int:
        """Slots without a row."""
        return len(self._free)

    @property
    def live(self) -> int:
        """Slots with a row."""
        return len(self._seats)

    @property
    def room(self) -> int:
        """Pages that rows can still have."""
        return len(self._free_pages)

    @property
    def most_pages(self) -> int:
        """Pages that a single row can have."""
        return min(self.widths.pages, self._first_prefix_page - 1)

    @property
    def most_prefix(self) -> int:
        """Tokens that a shared beginning can have."""
        return PAGE * min(self.widths.prefix_pages, self._all_pages - self._first_prefix_page)

    @property
    def together(self) -> int:
        """Prompt tokens computed at a time."""
        return self.widths.tokens

    @property
    def most_rows(self) -> int:
        """Rows that begin at a time."""
        return self.widths.rows

    @property
    def penalty_bytes(self) -> int:
        """Memory that is allocated when the first row with a penalty comes."""
        return self._state.penalty_bytes + self._sampler.penalty_bytes

    def prepare(self, needs: Needs) -> None:
        """Records the passes for rows that are sampled so, which may take seconds."""
        with self._queued():
            self._kinds.ready(needs)

    def rehearse(self, needs: Needs) -> None:
        """Calls the passes once, over nobody's rows: whatever they need of memory they need now."""
        with self._queued(), self._unharmed(needs):
            self._passes.step(needs)
            self._passes.prefill(needs)

    def prefix(self, tokens: tuple[int, ...]) -> PagedPrefix:
        """Computes a shared beginning. There is room for it."""
        count = pages_for(len(tokens))
        prefix = PagedPrefix(tokens, self._free_prefixes.pop(), [self._free_prefix_pages.pop() for _ in range(count)])
        try:
            with self._queued():
                prefill = self._kinds.ready().prefill
                for piece in tickets.chunks(tokens, 0, prefix.pages, self.widths.tokens):
                    self._packed.send({**tickets.packed_numbers([piece]), **_shared(prefix, piece.start)})
                    prefill()
        except BaseException:
            self.forget(prefix)
            raise
        return prefix

    def forget(self, prefix: PagedPrefix) -> None:
        """Lets go of a shared beginning that no row uses."""
        self._free_prefixes.append(prefix.row)
        self._free_prefix_pages += prefix.pages

    def admit(self, seats: Sequence[Seat]) -> list[Seat]:
        """Queues the prompts of ``seats``, which have the same prefix or none and fit into one pass; one that is alone
        may be longer. Gives them slots and pages, of which there are enough. No row ends with it.
        """
        for seat in seats:
            self._seat(seat)
        try:
            with self._queued():
                self._begin(seats)
        except BaseException:
            for seat in seats:
                self.remove(seat)
            raise
        return []

    def _begin(self, seats: Sequence[Seat]) -> None:
        needs = Needs.of([seat.sampling for seat in seats])
        prefill = self._kinds.ready(needs).prefill
        prefix = seats[0].prefix
        assert prefix is None or isinstance(prefix, PagedPrefix)
        start = 0 if prefix is None else len(prefix.tokens)
        shared = {} if prefix is None else _shared(prefix, start)
        if needs.penalty:
            penalised = [seat for seat in seats if seat.sampling.repetition_penalty != 1]
            self._state.see({seat.slot: seat.row.prompt.prepared.token_ids for seat in penalised})
        pieces = [list(tickets.chunks(seat.own, start, seat.pages, self.widths.tokens)) for seat in seats]
        for piece in pieces[0][:-1]:  # of a long prompt, which is alone
            self._packed.send({**tickets.packed_numbers([piece]), **shared, **_earlier(piece)})
            prefill()
        lasts = [each[-1] for each in pieces]
        rows = tickets.row_numbers(seats, lasts, self.widths, _row_of(seats[0]), start)
        self._packed.send({**tickets.packed_numbers(lasts), **shared, **_earlier(lasts[0]), **rows})
        prefill()

    def step(self) -> list[Seat]:
        """Queues a group of steps, if any row has tokens to come, and reads the one before; gives the rows that have
        ended in it.
        """
        self.torn = True
        with self._queued():
            steps = max(0, min(self.steps, max(self._to_come(slot) for slot in self._seats)))
            last = not steps and not self._flying
            if steps or last:  # rows of a single token have it without a step
                self._queue(steps)
        ended = self._read() if len(self._flying) > 1 or not steps else []
        if last and self._seats:  # all that could come has been read: better an error than to wait for ever
            raise RuntimeError(f"{len(self._seats)} rows ended on the device and not on the host")
        self.torn = False
        return ended

    def _queue(self, steps: int) -> None:
        state = self._state
        if self._changed:
            rows = {slot: _row_of(seat) for slot, seat in self._seats.items()}
            self._lanes.send(tickets.lane_numbers(rows, self.slots))
            self._passes.let_go()
            self._changed = False
        step = self._kinds.ready(Needs.of([seat.sampling for seat in self._seats.values()])).step
        for _ in range(steps):
            step()
        read = next(self._reads)
        for there, here in zip(read.there, state.read_by_host, strict=True):
            there.copy_(here, non_blocking=True)
        if read.copied is not None:
            read.copied.record()
        state.start_group()
        self._flying.append(_Group(dict(self._seats), read))
        for slot in self._seats:
            self._queued_tokens[slot] += steps

    def _to_come(self, slot: int) -> int:
        """Tokens that the row may still get, beyond those that are queued."""
        return self._seats[slot].row.prompt.max_new_tokens - self._queued_tokens[slot]

    def _read(self) -> list[Seat]:
        """Gives the rows of the oldest group their tokens, and takes away those that have ended."""
        group = self._flying.popleft()
        if group.read.copied is not None:
            group.read.copied.synchronize()
        lines, scores = group.read.codes.T.tolist(), group.read.logprobs.T.tolist()
        ended: list[Seat] = []
        for slot, seat in group.seats.items():
            if self._settled(seat, lines[slot], scores[slot]):
                ended.append(seat)
        return ended

    def _settled(self, seat: Seat, codes: Sequence[int], logprobs: Sequence[float]) -> bool:
        """Gives a row its tokens; whether it has ended with one of them."""
        for code, logprob in zip(codes, logprobs, strict=True):
            if self._seats.get(seat.slot) is not seat:
                return False  # it had ended before
            if code != NOTHING:
                self.settle(seat.row, max(code, 0), code == BROKEN, logprob if seat.sampling.logprobs else None)
                if seat.row.reason is not None:
                    self.remove(seat)
                    return True
        return False

    def remove(self, seat: Seat) -> None:
        """Frees a row's slot."""
        del self._seats[seat.slot], self._queued_tokens[seat.slot]
        self._free.append(seat.slot)
        self._free_pages += seat.pages
        self._changed = True

    @torch.inference_mode()  # as everything else is done, by whoever uses the decoder
    def reset(self) -> None:
        """Takes all rows away, whatever state they are in; prefixes stay."""
        if self._stream is not None:
            self._stream.synchronize()
        with self._queued():
            self._state.reset()
        self._no_rows()

    def clear(self) -> None:
        """Takes all rows and all prefixes away: whoever had them does not use them any more."""
        self.reset()
        self._no_prefixes()

    def _seat(self, seat: Seat) -> None:
        seat.slot = self._free.pop()
        seat.length = len(seat.own)
        seat.pages = [self._free_pages.pop() for _ in range(seat.pages_needed)]
        self._seats[seat.slot] = seat
        self._queued_tokens[seat.slot] = 1
        self._changed = True

    @contextmanager
    def _unharmed(self, needs: Needs) -> Iterator[None]:
        """Passes may be called for trial: no row notices."""
        state = self._state
        if needs.penalty:
            state.penalise()  # it must not be made while a pass is recorded
        kept = [(each, each.clone()) for each in (state.live, state.line, *state.read_by_host)]
        state.live.fill_(False)
        self._packed.send({})
        state.start_group()
        try:
            yield
        finally:
            for each, was in kept:
                each.copy_(was)

    def _queued(self) -> Any:
        """Work goes to the decoder's stream."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def _row_of(seat: Seat) -> int:
    """Its prefix's place in the table; -1: none."""
    return seat.prefix.row if isinstance(seat.prefix, PagedPrefix) else -1


def _shared(prefix: PagedPrefix, length: int) -> Numbers:
    """The prefix of a packed pass, of which so many tokens are there."""
    return {
        "packed_prefix": [prefix.row],
        "shared_row": [prefix.row],
        "shared_pages": prefix.pages,
        "shared_length": [length],
    }


def _earlier(piece: tickets.Piece) -> Numbers:
    return {"earlier": piece.pages[: piece.start // PAGE], "earlier_length": [piece.start]}
