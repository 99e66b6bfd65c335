"""Made-up states of the cache to call attention on: prefixes, rows of every length, empty slots, packed prompts; and
what attention is by its definition, in float64.

Cells that nothing was written to hold NaN, in every page, so whoever reads one of them is found out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from asyncgen.backends.slots.cache import PAGE
from asyncgen.backends.slots.gpu import tickets
from asyncgen.backends.slots.gpu.inbox import Inbox
from asyncgen.backends.slots.gpu.lanes import Attention, Lanes, Packed, Shared
from asyncgen.backends.slots.gpu.tickets import Piece, Widths

__all__ = ["Heads", "Scene", "decoding", "packing"]

Pool = tuple[Tensor, Tensor]
_Text = tuple[Sequence[tuple[int, int]], int, int]


@dataclass(frozen=True, slots=True)
class Heads:
    """Of a layer."""

    queries: int
    kv: int
    size: int

    @property
    def group(self) -> int:
        """Query heads of a key and value head."""
        return self.queries // self.kv


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A call of attention: decoding if it has lanes, a prefill if it has packed tokens."""

    heads: Heads
    queries: Tensor
    keys: Tensor
    values: Tensor
    pool: Pool
    lanes: Lanes | None
    packed: Packed | None
    texts: tuple[_Text, ...]
    """Of each token that is computed: cells (page, offset) that it sees in the cache, its first packed neighbour that
    it sees, and its own place. Those that nobody asks for are not in it: (cells (), -1, place)."""
    written: tuple[tuple[int, int, int], ...]
    """Page, offset and token of what must be in the cache afterwards."""

    @property
    def scale(self) -> float:
        """As models have it."""
        return float(self.heads.size**-0.5)

    def call(self, attention: Attention) -> Tensor:
        """What ``attention`` makes of it; writes to the pool."""
        pool = self.pool
        if self.lanes is not None:
            return attention.decode(self.queries, self.keys, self.values, pool, self.lanes, self.scale)
        assert self.packed is not None
        return attention.prefill(self.queries, self.keys, self.values, pool, self.packed, self.scale)

    def expected(self) -> Tensor:
        """By the definition, token by token, float64."""
        found = torch.zeros_like(self.queries, dtype=torch.float64)
        keys, values = self.pool
        for cells, first, place in self.texts:
            if first < 0:
                continue
            pages = torch.tensor([page for page, _ in cells], dtype=torch.int64, device=keys.device)
            offsets = torch.tensor([offset for _, offset in cells], dtype=torch.int64, device=keys.device)
            mine = [
                torch.cat((cached[pages, :, offsets], new[first : place + 1])).double()
                for cached, new in ((keys, self.keys), (values, self.values))
            ]
            query = self.queries[place].double().view(self.heads.kv, self.heads.group, -1)
            weights = (torch.einsum("kgd,nkd->kgn", query, mine[0]) * self.scale).softmax(-1)
            found[place] = torch.einsum("kgn,nkd->kgd", weights, mine[1]).flatten(0, 1)
        return found

    def copied(self) -> Scene:
        """The same with a pool of its own."""
        return replace(self, pool=(self.pool[0].clone(), self.pool[1].clone()))


class _Cells:
    """Hands out pages in a random order, and writes random tokens into them."""

    def __init__(
        self, heads: Heads, pages: int, dtype: torch.dtype, device: torch.device, chance: random.Random
    ) -> None:
        shape = (pages, heads.kv, PAGE, heads.size)
        self.pool = tuple(torch.full(shape, torch.nan, dtype=dtype, device=device) for _ in range(2))
        self._free = list(range(1, pages))
        chance.shuffle(self._free)

    def text(self, tokens: int, room: int | None = None) -> tuple[list[int], list[tuple[int, int]]]:
        """Pages for ``room`` tokens, and the cells of the first ``tokens``, which are filled."""
        pages = [self._free.pop() for _ in range(-(-max(1, room or tokens) // PAGE))]
        cells = [(pages[place // PAGE], place % PAGE) for place in range(tokens)]
        for start in range(0, tokens, PAGE):
            for part in self.pool:
                part[pages[start // PAGE], :, : min(PAGE, tokens - start)].normal_()
        return pages, cells


def _tensors(heads: Heads, count: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    def made(number: int) -> Tensor:
        return torch.randn(count, number, heads.size, device=device).to(dtype)

    return made(heads.queries), made(heads.kv), made(heads.kv)


def _shared(prefixes: Sequence[int], cells: _Cells, device: torch.device) -> tuple[Shared, list[list[tuple[int, int]]]]:
    made = [cells.text(length) for length in prefixes]
    width = max((len(pages) for pages, _ in made), default=1) + 2
    table = torch.zeros(len(prefixes) + 1, width, dtype=torch.int32)
    for row, (pages, _) in zip(table, made, strict=False):
        row[: len(pages)] = torch.tensor(pages)
    lengths = torch.tensor([*prefixes, 0], dtype=torch.int32)
    return Shared(table.to(device), lengths.to(device)), [seen for _, seen in made]


def decoding(
    heads: Heads,
    slots: int,
    *,
    prefixes: Sequence[int],
    own: tuple[int, int],
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
    empty: float = 0.1,
    alone: float = 0.2,
) -> Scene:
    """A step of ``slots`` rows, ``own`` tokens each in the cache; a share is empty, another has no prefix."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    width = -(-(own[1] + 1) // PAGE) + 1
    pages = 1 + slots * width + sum(-(-length // PAGE) for length in prefixes)
    cells = _Cells(heads, pages, dtype, device, chance)
    shared, seen = _shared(prefixes, cells, device)
    table = torch.tensor([[chance.randrange(pages) for _ in range(width)] for _ in range(slots)], dtype=torch.int32)
    lengths, prefix_of = [0] * slots, [-1] * slots
    live = [chance.random() >= empty for _ in range(slots)]
    texts: list[_Text] = []
    written: list[tuple[int, int, int]] = []
    for slot in range(slots):
        if not live[slot]:
            texts.append(((), -1, slot))
            continue
        lengths[slot] = chance.randint(*own)
        mine, there = cells.text(lengths[slot], lengths[slot] + 1)
        table[slot, : len(mine)] = torch.tensor(mine, dtype=torch.int32)
        if prefixes and chance.random() >= alone:
            prefix_of[slot] = chance.randrange(len(prefixes))
            there = [*seen[prefix_of[slot]], *there]
        texts.append((tuple(there), slot, slot))
        written.append((mine[lengths[slot] // PAGE], lengths[slot] % PAGE, slot))
    widths = Widths(PAGE, 1, width, 1, slots, max(1, len(prefixes)))
    box = Inbox(tickets.lane_places(widths), device)
    box.send(tickets.lane_numbers({slot: prefix_of[slot] for slot in range(slots) if live[slot]}, slots))

    def there_as(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    lanes = Lanes(
        torch.tensor(live, device=device),
        there_as(lengths),
        table.to(device),
        there_as(prefix_of),
        shared,
        box.there["tile_prefix"],
        box.there["tile_slots"],
    )
    queries, keys, values = _tensors(heads, slots, dtype, device)
    pool = (cells.pool[0], cells.pool[1])
    return Scene(heads, queries, keys, values, pool, lanes, None, tuple(texts), tuple(written))


def packing(
    heads: Heads,
    tokens: int,
    *,
    prefix: int,
    lengths: Sequence[int],
    earlier: int = 0,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Scene:
    """Prompts of these ``lengths`` packed into ``tokens``, behind a prefix of so many tokens; ``earlier`` ones, a
    multiple of PAGE, are in the cache already (of a single prompt).
    """
    texts: list[_Text] = []
    written: list[tuple[int, int, int]] = []
    chance = random.Random(seed)
    torch.manual_seed(seed)
    needed = sum(-(-(earlier + length) // PAGE) for length in lengths) + -(-max(1, prefix) // PAGE)
    cells = _Cells(heads, 3 + needed, dtype, device, chance)
    shared, seen = _shared([prefix] if prefix else [], cells, device)
    rows = max(len(lengths), 1)
    width = max(-(-(earlier + length) // PAGE) for length in lengths)
    widths = Widths(tokens, rows, width, shared.table.shape[1], rows, 1)
    pieces, first = [], 0
    for length in lengths:
        pages, before = cells.text(earlier, earlier + length)
        pieces.append(Piece(range(4, 4 + length), prefix + earlier, pages, earlier))
        known = (*(seen[0] if prefix else ()), *before)
        for place in range(length):
            texts.append((known, first, first + place))
            cell = earlier + place
            written.append((pages[cell // PAGE], cell % PAGE, first + place))
        first += length
    texts += [((), -1, place) for place in range(first, tokens)]
    box = Inbox(tickets.packed_places(widths), device)
    numbers = tickets.packed_numbers(pieces)
    if prefix:
        numbers["packed_prefix"] = [0]
    if earlier:
        numbers |= {"earlier": pieces[0].pages[: earlier // PAGE], "earlier_length": [earlier]}
    box.send(numbers)
    there = box.there
    packed = Packed(
        there["tile_start"],
        there["tile_first"],
        there["tile_end"],
        there["pages"],
        there["offsets"],
        there["packed_prefix"],
        shared,
        there["earlier"],
        there["earlier_length"],
    )
    queries, keys, values = _tensors(heads, tokens, dtype, device)
    pool = (cells.pool[0], cells.pool[1])
    return Scene(heads, queries, keys, values, pool, None, packed, tuple(texts), tuple(written))
