"""The parts of the decoder with fixed shapes that decide: what the host tells the device, and how memory is divided."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from asyncgen.backends.decoding import Row
from asyncgen.backends.slots.arrangement import Seat
from asyncgen.backends.slots.cache import PAGE, LayerShape, pages_for
from asyncgen.backends.slots.gpu.inbox import BLOCKS, Inbox, Place
from asyncgen.backends.slots.gpu.lanes import ROWS, TILE
from asyncgen.backends.slots.gpu.sizing import (
    MOST_TOKENS,
    PREFIX_TOKENS,
    USABLE,
    Memory,
    Wanted,
    divided,
    fewer,
    page_bytes,
    widths_for,
)
from asyncgen.backends.slots.gpu.tickets import (
    Widths,
    chunks,
    lane_numbers,
    lane_places,
    packed_numbers,
    packed_places,
    row_numbers,
)
from asyncgen.records import Prompt, Sampling

CPU = torch.device("cpu")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=3 * BLOCKS))
def test_an_inbox_has_what_was_sent_last_and_no_more(sendings: list[tuple[int, int]]) -> None:
    places = {
        "ids": Place((5,), torch.int64, fill=-1),
        "rows": Place((2, 2)),
        "scores": Place((3,), torch.float64),
    }
    inbox = Inbox(places, CPU)
    there = {name: view.data_ptr() for name, view in inbox.there.items()}
    for number, (ids, rows) in enumerate(sendings):
        inbox.send({"ids": [number] * ids, "rows": np.arange(rows)})
        assert inbox.there["ids"].tolist() == [number] * ids + [-1] * (5 - ids)
        assert inbox.there["rows"].flatten().tolist() == [*range(rows)] + [0] * (4 - rows)
        assert inbox.there["scores"].tolist() == [0.0, 0.0, 0.0]
    assert there == {name: view.data_ptr() for name, view in inbox.there.items()}, "places never change"


def seats_of(lengths: list[int]) -> list[Seat]:
    seats = []
    for number, length in enumerate(lengths):
        prompt = Prompt(number, (), seed=number, max_new_tokens=40)
        seat = Seat(Row(prompt, 0.0), tuple(range(1000 * number, 1000 * number + length)), None, Sampling(0.5, top_k=3))
        seat.slot, seat.pages = number, [100 * number + page for page in range(pages_for(length, 40))]
        seats.append(seat)
    return seats


@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=8),
    width=st.sampled_from([64, 128, 256]),
    start=st.integers(0, 90),
)
def test_every_token_has_its_place_exactly_once(lengths: list[int], width: int, start: int) -> None:
    widths = Widths(tokens=width, rows=8, pages=8, prefix_pages=4, slots=8, prefixes=2)
    seats = seats_of(lengths if sum(lengths) <= width else lengths[:1])
    places = packed_places(widths)
    written: dict[tuple[int, int], int] = {}
    passes = list(zip(*(list(chunks(seat.own, start, seat.pages, width)) for seat in seats), strict=False))
    passes = passes if len(seats) == 1 else passes[:1]
    for pieces in passes:
        numbers = packed_numbers(pieces)
        assert all(len(values) <= places[name].shape[0] for name, values in numbers.items())
        columns = [numbers[name] for name in ("token_ids", "positions", "pages", "offsets")]
        for token, position, page, offset in zip(*columns, strict=True):
            written[int(page), int(offset)] = int(token)
            assert position == start + int(token) % 1000
        covered: list[int] = []
        tiles = zip(*(numbers[name] for name in ("tile_start", "tile_first", "tile_end")), strict=True)
        for begin, first, end in tiles:
            assert (int(begin) - int(first)) % TILE == 0
            covered += range(int(begin), min(int(begin) + TILE, int(end)))
        assert covered == [*range(len(numbers["token_ids"]))]
    expected = {(seat.pages[i // PAGE], i % PAGE): token for seat in seats for i, token in enumerate(seat.own)}
    assert written == expected


def test_rows_begin_behind_their_last_tokens() -> None:
    widths = Widths(tokens=256, rows=4, pages=8, prefix_pages=4, slots=8, prefixes=2)
    seats = seats_of([3, 70, 12])
    pieces = [next(chunks(seat.own, 7, seat.pages, 256)) for seat in seats]
    numbers = row_numbers(seats, pieces, widths, prefix=1, start=7)
    assert list(numbers["keep"]) == [2, 72, 84]
    assert numbers["lengths"] == [3, 70, 12]
    places = packed_places(widths)
    inbox = Inbox(places, CPU)
    inbox.send({**packed_numbers(pieces), **numbers})
    assert inbox.there["slots"].tolist() == [0, 1, 2, widths.slots]
    assert inbox.there["table"][1, :2].tolist() == [100, 101]
    assert inbox.there["temperature"].tolist() == [0.5, 0.5, 0.5, 0.0]
    assert inbox.there["limits"].tolist() == [40, 40, 40, 0], "a row that is nobody's never lives"


class Asked(TorchFunctionMode):
    """Counts what torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.functions.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_a_group_of_prompts_gives_the_interpreter_away_once() -> None:
    """Each of torch's functions lets go of it, and beside a busy thread waits for a turn of milliseconds."""
    widths = Widths(tokens=256, rows=4, pages=8, prefix_pages=4, slots=8, prefixes=2)
    seats = seats_of([3, 70, 12])
    inbox = Inbox(packed_places(widths), CPU)
    with Asked() as asked:
        pieces = [next(chunks(seat.own, 7, seat.pages, 256)) for seat in seats]
        inbox.send({**packed_numbers(pieces), **row_numbers(seats, pieces, widths, prefix=1, start=7)})
    assert asked.functions == ["copy_"]


@given(st.dictionaries(st.integers(0, 39), st.integers(-1, 4), max_size=40))
def test_slots_of_a_tile_have_the_same_prefix(prefix_of: dict[int, int]) -> None:
    widths = Widths(tokens=256, rows=4, pages=8, prefix_pages=4, slots=40, prefixes=5)
    inbox = Inbox(lane_places(widths), CPU)
    inbox.send(lane_numbers(prefix_of, 40))
    assert {slot for slot, alive in enumerate(inbox.there["alive"].tolist()) if alive} == set(prefix_of)
    rows = zip(inbox.there["tile_prefix"].tolist(), inbox.there["tile_slots"].tolist(), strict=True)
    found = [(slot, prefix) for prefix, slots in rows for slot in slots if slot >= 0]
    assert all(len(slots) == ROWS for slots in inbox.there["tile_slots"].tolist())
    assert sorted(found) == sorted((slot, prefix) for slot, prefix in prefix_of.items() if prefix >= 0)


@given(
    free=st.integers(0, 150 << 30),
    state=st.integers(0, 2 << 30),
    later=st.integers(0, 1 << 30),
    activations=st.integers(0, 4 << 30),
    slots=st.integers(1, 1024),
    wanted=st.builds(Wanted, st.just(512), st.integers(1, 2000), st.sampled_from([128, 2048, 32_768, 1_000_000])),
)
def test_what_is_planned_fits(free: int, state: int, later: int, activations: int, slots: int, wanted: Wanted) -> None:
    layers = [LayerShape(16, 2, 128, 128)] * 36
    page = page_bytes(layers, 2)
    assert page == PAGE * 36_864
    measured = Memory(free, state, later, activations, page)
    memory = divided(measured, wanted, slots)
    if memory.pages:
        assert memory.planned + later <= USABLE * free
        assert memory.pages >= slots * wanted.row_pages
        assert memory.prefix_pages <= PREFIX_TOKENS // PAGE
    else:
        less = fewer(measured, wanted, slots)
        assert less < slots
        if less > 0:
            parts = {"state": state, "later": later, "activations": activations}
            share = dataclasses.replace(measured, **{name: part * less // slots for name, part in parts.items()})
            assert divided(share, wanted, less).pages, "the guess is one that fits, if less is needed in proportion"


@given(slots=st.integers(1, 2048), context=st.integers(16, 1_000_000))
def test_shapes_follow_the_number_of_slots(slots: int, context: int) -> None:
    widths = widths_for(slots, Wanted(slots, 100, context))
    assert widths.tokens % PAGE == 0
    assert widths.tokens <= MOST_TOKENS
    assert 1 <= widths.rows <= min(slots, widths.tokens)
    assert widths.tiles >= -(-widths.tokens // TILE)
