"""Cases for attention on slots, made of rows, prompts and prefixes that bring their own numbers with them.

What a row's numbers are follows from its seed alone, so that it can be put beside others, in other pages and in
another slot. What nobody may read is NaN: cells behind a length, pages of nobody, what fills a shape, and dead rows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from asyncgen.backends.slots.cache import PAGE
from asyncgen.backends.slots.gpu.lanes import ROWS, TILE, Attention, Lanes, Packed, Shared


@dataclass(frozen=True)
class Heads:
    """The shape of a layer's heads, and how its numbers are kept."""

    group: int
    kv: int
    size: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    fused: bool = False
    """Whether queries, keys and values are slices of one tensor."""

    @property
    def query(self) -> int:
        return self.group * self.kv

    @property
    def scale(self) -> float:
        return float(self.size**-0.5) * 1.5

    def draw(self, seed: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [tokens, H, D], keys and values [tokens, KV, D]."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn((tokens, self.query + 2 * self.kv, self.size), generator=generator).to(self.dtype)
        return drawn[:, : self.query], drawn[:, self.query : -self.kv], drawn[:, -self.kv :]

    def inputs(self, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """Room for these, full of NaN."""
        if self.fused:
            heads = (tokens, self.query + 2 * self.kv, self.size)
            whole = torch.full(heads, torch.nan, dtype=self.dtype, device=self.device)
            return whole[:, : self.query], whole[:, self.query : -self.kv], whole[:, -self.kv :]
        shapes = ((tokens, heads, self.size) for heads in (self.query, self.kv, self.kv))
        queries, keys, values = (torch.full(shape, torch.nan, dtype=self.dtype, device=self.device) for shape in shapes)
        return queries, keys, values


@dataclass(frozen=True)
class Prefix:
    length: int
    seed: int


@dataclass(frozen=True)
class Row:
    length: int
    """Own tokens in the cache."""
    seed: int
    prefix: Prefix | None = None
    live: bool = True


@dataclass(frozen=True)
class Prompt:
    length: int
    seed: int


@dataclass
class Pool:
    """A layer's pages; those that are in use lie anywhere."""

    heads: Heads
    places: random.Random
    pages: int = 60
    tensors: tuple[Tensor, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        heads = self.heads
        shape = (self.pages, heads.kv, PAGE, heads.size)
        keys, values = (torch.full(shape, torch.nan, dtype=heads.dtype, device=heads.device) for _ in range(2))
        self.tensors = keys, values
        self._free = list(range(1, self.pages - 1))  # the last one stands where a table means nothing
        self.places.shuffle(self._free)

    def take(self, tokens: int) -> list[int]:
        return [self._free.pop() for _ in range(-(-tokens // PAGE))]

    def write(self, pages: Sequence[int], keys: Tensor, values: Tensor, first: int = 0) -> None:
        """Tokens [n, KV, D] to a row's cells from its token ``first`` on."""
        for pool, tokens in zip(self.tensors, (keys, values), strict=True):
            for place, token in enumerate(tokens, first):
                pool[pages[place // PAGE], :, place % PAGE] = token.to(pool.device)

    def table(self, rows: Sequence[Sequence[int]], width: int) -> Tensor:
        """int32 [rows, width]"""
        filled = [[*row, *[self.pages - 1] * (width - len(row))] for row in rows]
        return torch.tensor(filled, dtype=torch.int32, device=self.heads.device).view(len(rows), width)

    def ints(self, numbers: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=self.heads.device)

    def shared(self, prefixes: Sequence[Prefix]) -> Shared:
        """These prefixes in pages of their own, and a row of the table that nobody has."""
        rows = []
        for prefix in prefixes:
            _, keys, values = self.heads.draw(prefix.seed, prefix.length)
            rows.append(self.take(prefix.length))
            self.write(rows[-1], keys, values)
        return Shared(self.table([*rows, []], 5), self.ints([*(each.length for each in prefixes), 9]))

    def copies(self) -> tuple[Tensor, Tensor]:
        keys, values = self.tensors
        return keys.clone(), values.clone()


def decode(attention: Attention, heads: Heads, rows: Sequence[Row], places: int = 0) -> Tensor:
    """A step of these rows, in slots in their order, and what it gave: [rows, H, D], on the CPU.

    Asserts that of the cache nothing changed but each live row's next cell. ``places`` seeds where everything lies.
    """
    order = random.Random(places)
    pool = Pool(heads, order)
    prefixes = list(dict.fromkeys(row.prefix for row in rows if row.prefix is not None))
    order.shuffle(prefixes)
    shared = pool.shared(prefixes)
    queries, keys, values = heads.inputs(len(rows))
    tables = []
    for slot, row in enumerate(rows):
        tables.append(pool.take(row.length + 1))
        drawn = heads.draw(row.seed, row.length + 1)
        pool.write(tables[-1], drawn[1][:-1], drawn[2][:-1])
        if row.live:
            for into, token in zip((queries, keys, values), drawn, strict=True):
                into[slot] = token[-1]
    expected = Pool(heads, order)
    expected.tensors = pool.copies()
    for slot, row in enumerate(rows):
        if row.live:
            expected.write(tables[slot], keys[slot, None], values[slot, None], row.length)
    numbers = [prefixes.index(row.prefix) if row.prefix is not None else -1 for row in rows]
    tiles = _slot_tiles(rows, numbers, order)
    lanes = Lanes(
        live=torch.tensor([row.live for row in rows], device=heads.device),
        lengths=pool.ints([row.length for row in rows]),
        table=pool.table(tables, 4),
        prefix=pool.ints(numbers),
        shared=shared,
        tile_prefix=pool.ints([number for number, _ in tiles]),
        tile_slots=pool.ints([[*slots, *[-1] * (ROWS - len(slots))] for _, slots in tiles]),
    )
    out = attention.decode(queries, keys, values, pool.tensors, lanes, heads.scale)
    _assert_same_bits(pool.tensors, expected.tensors)
    assert out.dtype == heads.dtype
    return out.cpu()


def _slot_tiles(rows: Sequence[Row], numbers: Sequence[int], order: random.Random) -> list[tuple[int, list[int]]]:
    """Tiles (prefix, slots) in any order, some of them not full, some with dead slots, some not in use."""
    tiles: list[tuple[int, list[int]]] = [(-1, [0] * ROWS)]
    for number in sorted(set(numbers) - {-1}):
        slots = [slot for slot, its in enumerate(numbers) if its == number]
        slots = [slot for slot in slots if rows[slot].live or order.random() < 0.5]
        order.shuffle(slots)
        while slots:
            take = order.randint(1, ROWS)
            taken, slots = slots[:take], slots[take:]
            where = order.randrange(ROWS - len(taken) + 1)
            tiles.append((number, [*[-1] * where, *taken]))
    order.shuffle(tiles)
    return tiles


def prefill(
    attention: Attention,
    heads: Heads,
    prompts: Sequence[Prompt],
    prefix: Prefix | None = None,
    *,
    places: int = 0,
    fill: int = 0,
    cuts: Sequence[int] = (),
) -> list[Tensor]:
    """These prompts packed, then ``fill`` tokens of nobody, and what each got: [length, H, D], on the CPU.

    A single prompt can be cut into pieces that are computed one after another. Asserts that of the cache nothing
    changed but the prompts' cells, and that what fills the shape gets zeros.
    """
    assert not cuts or len(prompts) == 1
    order = random.Random(places)
    pool = Pool(heads, order)
    prefixes = [Prefix(3, -1), prefix] if prefix is not None else [Prefix(3, -1)]
    shared = pool.shared(prefixes)
    tables = [pool.take(prompt.length) for prompt in prompts]
    ends = [*cuts, max((prompt.length for prompt in prompts), default=0)]
    found: list[list[Tensor]] = [[] for _ in prompts]
    for begin, end in zip([0, *cuts], ends, strict=True):
        pieces = [tuple(each[begin:end] for each in heads.draw(prompt.seed, prompt.length)) for prompt in prompts]
        tokens = sum(piece[0].shape[0] for piece in pieces)
        queries, keys, values = heads.inputs(tokens + fill)
        cells: list[tuple[int, int]] = []
        tiles: list[tuple[int, int, int]] = [(-1, 0, 0)]
        spans = []
        expected = Pool(heads, order)
        expected.tensors = pool.copies()
        for table, piece in zip(tables, pieces, strict=True):
            first, length = len(cells), piece[0].shape[0]
            spans.append(slice(first, first + length))
            for into, drawn in zip((queries, keys, values), piece, strict=True):
                into[spans[-1]] = drawn.to(into.device)
            expected.write(table, piece[1], piece[2], begin)
            cells += [(table[place // PAGE], place % PAGE) for place in range(begin, begin + length)]
            tiles += [(start, first, first + length) for start in range(first, first + length, TILE)]
        cells += [(0, 0)] * fill
        order.shuffle(tiles)
        packed = Packed(
            tile_start=pool.ints([start for start, _, _ in tiles]),
            tile_first=pool.ints([first for _, first, _ in tiles]),
            tile_end=pool.ints([last for _, _, last in tiles]),
            pages=pool.ints([page for page, _ in cells]),
            offsets=pool.ints([offset for _, offset in cells]),
            prefix=pool.ints([len(prefixes) - 1 if prefix is not None else -1]),
            shared=shared,
            earlier=pool.table(tables[:1] if begin else [[]], 6)[0],
            earlier_length=pool.ints([begin]),
        )
        out = attention.prefill(queries, keys, values, pool.tensors, packed, heads.scale).cpu()
        _assert_same_bits(pool.tensors, expected.tensors)
        assert out.dtype == heads.dtype
        assert not out[tokens:].any()
        for span, so_far in zip(spans, found, strict=True):
            so_far.append(out[span])
    return [torch.cat(each) for each in found]


def reference(heads: Heads, seed: int, tokens: int, prefix: Prefix | None) -> Tensor:
    """What each of a row's tokens gets, one after another and head by head: float64 [tokens, H, D]."""
    queries, keys, values = (each.double() for each in heads.draw(seed, tokens))
    before = 0 if prefix is None else prefix.length
    if prefix is not None:
        _, prefix_keys, prefix_values = (each.double() for each in heads.draw(prefix.seed, prefix.length))
        keys, values = torch.cat((prefix_keys, keys)), torch.cat((prefix_values, values))
    out = torch.empty((tokens, heads.query, heads.size), dtype=torch.float64)
    for token in range(tokens):
        for head in range(heads.query):
            mine = head // heads.group
            scores = keys[: before + token + 1, mine] @ queries[token, head] * heads.scale
            out[token, head] = scores.softmax(dim=0) @ values[: before + token + 1, mine]
    return out


def _assert_same_bits(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    bits = torch.int32 if found[0].dtype is torch.float32 else torch.int16
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.view(bits), other.view(bits)), "the cache has changed where it must not, or not where"
