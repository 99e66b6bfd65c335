"""The engine itself, without threads or streams: rows go in, steps are made, rows that have ended come out.

S slots share one cache. ``admit`` computes the prompts of a group of rows and samples their first tokens, ``step``
computes one more token of every row; both return the rows that have ended with it, whose slots are free at once.
Whatever a row gets is a function of its prompt alone: on a CPU, in float32, to the bit, at any number of slots, with
one thread or two (see ``attention``, ``filling``); of more threads the number must stay the same. Not held to: layers
less than 16 wide whose input's width is no multiple of four, and mixtures of experts, which compute each expert's rows
by themselves. In bfloat16 a last bit differs now and then.

What a step needs lies in tensors on the model's device (``State``, ``Cache``); the host keeps, beside them, which row
is where (``Arrangement``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from asyncgen.backends.sampling import Picked, Sampler
from asyncgen.backends.sampling_parameters import Needs
from asyncgen.backends.slots.arrangement import Arrangement, Seat
from asyncgen.backends.slots.attention import Partials
from asyncgen.backends.slots.base import Settle, nobody
from asyncgen.backends.slots.cache import PAGE, Cache, LayerShape, pages_for
from asyncgen.backends.slots.filling import LANES, Filling
from asyncgen.backends.slots.passes import Decode, Prefill, Prefix, forward
from asyncgen.backends.slots.state import State
from asyncgen.backends.slots.threads import most_threads

__all__ = ["Decoder"]

WASTE = 0.2
"""Share of the pages computed that may be holes."""
TOGETHER = 2048
"""Prompt tokens computed at a time; the rows that run wait meanwhile."""


class Decoder:
    """S slots of one model. See ``base.SlotDecoder`` for what is promised of its methods."""

    def __init__(
        self,
        model: Any,
        layers: Sequence[LayerShape],
        *,
        slots: int,
        pages: int,
        vocabulary: int,
        settle: Settle = nobody,
    ) -> None:
        self._model = model
        self.device: torch.device = model.device
        self.slots = slots
        self.settle = settle
        dtype = model.dtype
        layers = [layer.aligned for layer in layers]
        self.cache = Cache(layers, pages, dtype, self.device)
        rooms = {layer: Partials.room(layer, pages, dtype, self.device) for layer in dict.fromkeys(layers)}
        self._rooms = [rooms[layer] for layer in layers]
        self._neutral = pages
        self._filling = Filling.of(model, vocabulary, most_threads())
        # The last ones are never a row's.
        self._size = size = slots + max(self._filling.up(rows) - rows for rows in range(1, slots + 1))
        self._state = State(size, vocabulary, self.device)
        self._sampler = Sampler(size, vocabulary, self.device)
        self._table = torch.full((size, 8), self._neutral, dtype=torch.int64, device=self.device)
        self._table[slots:, 0] = 0
        self._free = list(range(slots - 1, -1, -1))
        self._seats: dict[int, Seat] = {}
        self._arrangement: Arrangement | None = None
        self.torn = False
        """Whether something has failed in the middle: there is no way on but ``reset``."""

    @property
    def seats(self) -> Iterable[Seat]:
        """The rows that run."""
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
        return self.cache.pages.room

    @property
    def most_pages(self) -> int:
        """Pages that a single row can have."""
        return self.cache.pages.count - 1

    @property
    def together(self) -> int:
        """Prompt tokens computed at a time; a longer prompt is computed alone."""
        return TOGETHER

    @property
    def most_rows(self) -> int:
        """Rows that begin at a time."""
        return self.slots

    def prefix(self, tokens: tuple[int, ...]) -> Prefix:
        """Computes a shared beginning."""
        run = Prefill([len(tokens)], None, self.device)
        self._prefill(tokens, [len(tokens)], 0, run, torch.zeros(1, dtype=torch.int64))

        def heads_first(each: Tensor) -> Tensor:
            return each[: len(tokens)].transpose(0, 1)[None].contiguous()

        return Prefix(tokens, [heads_first(each) for each in run.keys], [heads_first(each) for each in run.values])

    def forget(self, prefix: Prefix) -> None:
        """Nothing is to be done: a prefix has its own memory."""

    def admit(self, seats: Sequence[Seat]) -> list[Seat]:
        """Computes the prompts of ``seats``, which have the same prefix or none, gives them slots (there are
        free ones, and pages), and samples their first tokens. If computing fails nothing has changed.
        """
        prefix = seats[0].prefix
        assert prefix is None or isinstance(prefix, Prefix)
        packed = [token for seat in seats for token in seat.own]
        lengths = [len(seat.own) for seat in seats]
        ends = torch.tensor(lengths).cumsum(0) - 1
        run = Prefill(lengths, prefix, self.device)
        start = 0 if prefix is None else len(prefix.tokens)
        logits = self._prefill(packed, lengths, start, run, ends)
        try:
            return self._begin(seats, start, run, logits)
        except BaseException:
            for seat in [seat for seat in seats if self._seats.get(seat.slot) is seat]:
                self.remove(seat)
            raise

    def _begin(self, seats: Sequence[Seat], start: int, run: Prefill, logits: Tensor) -> list[Seat]:
        """Gives computed prompts their slots, and samples."""
        lengths = [len(seat.own) for seat in seats]
        for seat in seats:
            self._seat(seat)
        pages = torch.tensor([page for seat in seats for page in seat.pages_of_own()], device=self.device)
        offsets = torch.cat([torch.arange(length) % PAGE for length in lengths]).to(self.device)
        for layer, (keys, values) in enumerate(zip(run.keys, run.values, strict=True)):
            self.cache.write(layer, pages, offsets, keys[: len(pages)], values[: len(pages)])
        self.cache.bias[pages, 0, offsets] = 0
        slots = torch.tensor([seat.slot for seat in seats], device=self.device)
        self._state.seat(slots, seats, start)
        picked = self._pick(logits[: len(seats)], slots, Needs.of([seat.sampling for seat in seats]))
        return self._take(picked, slots, seats)

    def step(self) -> list[Seat]:
        """One more token of every row; there is at least one. Gives those that have ended."""
        return self.take(self.compute())

    def compute(self) -> Picked:
        """The next token of every row. No row goes on before ``take``: if this fails it can be done again."""
        self._grow()
        if (arranged := self._arrangement) is None:
            arranged = self._arrangement = self._arrange()
        state, lanes = self._state, arranged.lanes
        lengths = state.lengths[lanes]
        pages, offsets = self._table[lanes, lengths // PAGE], lengths % PAGE
        self.cache.bias[pages, 0, offsets] = 0
        run = Decode(
            self.cache,
            self._rooms,
            pages=pages,
            offsets=offsets,
            table=self._table[lanes, : max(len(seat.pages) for seat in arranged.seats)],
            owners=arranged.lane_of[self.cache.owners[: self.cache.pages.region]],
            prefixes=arranged.prefixes,
        )
        logits = forward(self._model, state.tokens[lanes], state.starts[lanes] + lengths, run)
        count = len(arranged.seats)
        return self._pick(logits[:count], lanes[:count], arranged.needs)

    def take(self, picked: Picked) -> list[Seat]:
        """Lets all rows go on by what ``compute`` picked, and takes away those that have ended."""
        arranged = self._arrangement
        assert arranged is not None, "compute comes first"
        live = arranged.lanes[: len(arranged.seats)]
        self.torn = True
        self._state.lengths[live] += 1
        for seat in arranged.seats:
            seat.length += 1
        ended = self._take(picked, live, arranged.seats)
        self.torn = False
        return ended

    def reset(self) -> None:
        """Takes all rows away, whatever state they are in."""
        self._seats.clear()
        self._free = list(range(self.slots - 1, -1, -1))
        self._table[: self.slots].fill_(self._neutral)
        self.cache.reset()
        self._arrangement = None
        self.torn = False

    def remove(self, seat: Seat) -> None:
        """Frees a row's slot."""
        del self._seats[seat.slot]
        self._free.append(seat.slot)
        self._table[seat.slot].fill_(self._neutral)
        self.cache.release(seat.pages, seat.pages_needed)
        self._arrangement = None

    def _prefill(self, packed: Sequence[int], lengths: Sequence[int], start: int, run: Prefill, keep: Tensor) -> Tensor:
        """Logits of the tokens at ``keep``, repeated up to a multiple of ``LANES``."""
        fill = self._filling.up(len(packed)) - len(packed)
        tokens = torch.tensor([*packed, *[0] * fill], device=self.device)
        sequences = [torch.arange(start, start + length) for length in lengths]
        positions = torch.cat([*sequences, torch.zeros(fill, dtype=torch.int64)])
        keep = torch.cat([keep, keep[:1].expand(-len(keep) % LANES)])
        return forward(self._model, tokens, positions.to(self.device), run, keep.to(self.device))

    def _seat(self, seat: Seat) -> None:
        seat.slot = self._free.pop()
        seat.length = len(seat.own)
        self.cache.pages.reserve(seat.pages_needed)
        self._seats[seat.slot] = seat  # before what may fail: then ``remove`` takes all of it back
        self._arrangement = None
        for _ in range(pages_for(len(seat.own))):
            self._add_page(seat)

    def _add_page(self, seat: Seat) -> None:
        if len(seat.pages) == self._table.shape[1]:
            more = torch.full_like(self._table, self._neutral)
            self._table = torch.cat([self._table, more], dim=1)
        page = self.cache.take(seat.slot)
        try:
            self._table[seat.slot, len(seat.pages)] = page
        except BaseException:
            self.cache.release([page], 0)
            raise
        seat.pages.append(page)

    def _grow(self) -> None:
        """Gives a page to every row whose next token begins one."""
        for seat in self._seats.values():
            if seat.length == len(seat.pages) * PAGE:
                self._add_page(seat)

    def _arrange(self) -> Arrangement:
        """Closes holes among the pages, then arranges the rows that run."""
        self.torn = True
        for source, target in self.cache.compact(WASTE):
            seat = self._seats[self.cache.pages.owners[target]]
            place = seat.pages.index(source)
            seat.pages[place] = target
            self._table[seat.slot, place] = target
        self.torn = False
        return Arrangement.of(self._seats.values(), self._filling, self._size, self.slots, self.device)

    def _pick(self, logits: Tensor, slots: Tensor, needs: Needs) -> Picked:
        """The next tokens of the rows in ``slots``."""
        state = self._state
        parameters = state.parameters.select(slots)
        return self._sampler.pick(
            logits, state.seeds[slots], state.drawn[slots], parameters, needs, state.seen(slots, needs)
        )

    def _take(self, picked: Picked, slots: Tensor, seats: Sequence[Seat]) -> list[Seat]:
        """Gives the rows in ``slots`` their tokens, and takes away those that have ended."""
        self._state.take(slots, picked)
        tokens, broken = picked.tokens.tolist(), picked.broken.tolist()
        logprobs = [None] * len(tokens) if picked.logprobs is None else picked.logprobs.tolist()
        ended = []
        for seat, token, bad, logprob in zip(seats, tokens, broken, logprobs, strict=True):
            self.settle(seat.row, token, bad, logprob if seat.sampling.logprobs else None)
            if seat.row.reason is not None:
                self.remove(seat)
                ended.append(seat)
        return ended
