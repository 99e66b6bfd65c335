"""The engine's small parts, each against what it promises."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asyncgen.backends.chat import Chat
from asyncgen.backends.slots.arrangement import Beginning
from asyncgen.backends.slots.boundary import PROBES, SHORTEST, Boundaries
from asyncgen.backends.slots.cache import NEUTRAL, PAGE, Cache, LayerShape, pages_for
from asyncgen.backends.slots.meter import SlotMeter
from asyncgen.backends.slots.passes import Prefix
from asyncgen.backends.slots.prefixes import IDLE, Prefixes, Room
from asyncgen.backends.slots.sizing import size
from asyncgen.backends.slots.threads import LATEST, TRIAL, ThreadChoice
from asyncgen.records import Message
from tests.backends.helpers import CHATML, make_tokenizer

CPU = torch.device("cpu")
COUNT = 24


class PagesMachine(RuleBasedStateMachine):
    """Rows take and give back pages; a naive model knows whose each is and what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = Cache([LayerShape(2, 1, 4, 4)], COUNT, torch.float32, CPU)
        self.held: dict[int, dict[int, float]] = {}
        self.reserved: dict[int, int] = {}
        self.next = 0

    @rule(pages=st.integers(1, 8))
    def come(self, pages: int) -> None:
        assert self.cache.pages.room == COUNT - 1 - sum(self.reserved.values())
        if pages <= self.cache.pages.room:
            self.cache.pages.reserve(pages)
            self.reserved[self.next], self.held[self.next] = pages, {}
            self.next += 1

    @precondition(lambda self: any(len(self.held[row]) < self.reserved[row] for row in self.held))
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from([row for row in self.held if len(self.held[row]) < self.reserved[row]]))
        page = self.cache.take(row)
        assert page not in {each for pages in self.held.values() for each in pages}
        assert page == min(set(range(1, COUNT)) - {each for pages in self.held.values() for each in pages})
        assert not self.cache.keys[0][page].any()
        assert not self.cache.values[0][page].any()
        assert (self.cache.bias[page] == NEUTRAL).all()
        mark = float(100 * row + len(self.held[row]) + 1)
        for pool in (self.cache.keys[0], self.cache.values[0], self.cache.bias):
            pool[page] = mark
        self.held[row][page] = mark

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(sorted(self.held)))
        self.cache.release(list(self.held.pop(row)), self.reserved.pop(row))

    @rule(waste=st.sampled_from([0.0, 0.2, 0.5]))
    def compact(self, waste: float) -> None:
        for source, target in self.cache.compact(waste):
            [row] = [row for row, pages in self.held.items() if source in pages]
            self.held[row][target] = self.held[row].pop(source)
        assert self.cache.pages.used >= (1 - waste) * self.cache.pages.region

    @invariant()
    def each_page_is_whose_it_is(self) -> None:
        pages, whose = self.cache.pages, {page: row for row, mine in self.held.items() for page in mine}
        assert pages.owners == [whose.get(page, -1) for page in range(COUNT)]
        assert self.cache.owners.tolist() == pages.owners
        assert pages.reserved == sum(self.reserved.values())
        assert pages.used == 1 + len(whose)
        assert pages.region == 1 + max(whose, default=0)
        for mine in self.held.values():
            for page, mark in mine.items():
                assert all((pool[page] == mark).all() for pool in (self.cache.keys[0], self.cache.values[0]))
                assert (self.cache.bias[page] == mark).all()


PagesMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=40, deadline=None)
TestPages = PagesMachine.TestCase


@given(own=st.integers(1, 300), new=st.integers(1, 300))
def test_pages_hold_all_but_the_last_token(own: int, new: int) -> None:
    assert (pages_for(own, new) - 1) * PAGE < own + new - 1 <= pages_for(own, new) * PAGE


def test_threads_change_where_the_other_number_is_faster_and_not_else() -> None:
    for one, two, best in ((1.0, 40.0, 1), (2.0, 1.2, 2), (1.0, 1.02, 2), (1.0, 1.3, 1)):
        choice = ThreadChoice(2)
        threads, tried = 2, []
        for _ in range(4 * LATEST):
            threads = choice.stepped(one if threads == 1 else two)
            tried.append(threads)
        assert tried[-20:].count(best) >= 20 - TRIAL
        assert tried.count(3 - best) < 200  # trials become rare


def test_threads_follow_a_neighbour_that_comes_and_goes() -> None:
    choice, threads = ThreadChoice(2), 2
    for busy in (False, True, False):
        for _ in range(2 * LATEST + 20):
            seconds = {1: 1.5, 2: 30.0 if busy else 1.0}[threads]
            threads = choice.stepped(seconds)
        assert choice.threads == (1 if busy else 2)


def test_one_thread_stays_one() -> None:
    choice = ThreadChoice(1)
    assert {choice.stepped(seconds) for seconds in (1.0, 100.0, 0.1) * 50} == {1}


@given(
    free=st.integers(0, 10**10),
    rows=st.just("auto") | st.integers(1, 300),
    new=st.integers(1, 4096),
    context=st.integers(16, 8192),
)
def test_sizes_keep_to_memory(free: int, rows: object, new: int, context: int) -> None:
    layers = [LayerShape(8, 2, 64, 64)] * 4
    found = size(
        layers,
        item_bytes=4,
        rows=rows,  # type: ignore[arg-type]  # hypothesis gives one of the two types
        max_new_tokens=new,
        context_length=context,
        free_bytes=free,
        gpu=False,
    )
    page = PAGE * 4 * 2 * 128 * 4
    assert 0 <= found.slots <= found.wanted == (128 if rows == "auto" else rows)  # 0: not even one fits
    assert found.pages >= 1 + found.slots
    assert found.pages * page <= free + page


class Computing:
    """Counts the beginnings that are computed."""

    def __init__(self) -> None:
        self.computed: list[tuple[int, ...]] = []

    def __call__(self, tokens: tuple[int, ...]) -> Prefix:
        self.computed.append(tokens)
        return Prefix(tokens, [], [])


@given(
    acts=st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=80),
    room=st.sampled_from([Room(60), Room(60, count=3), Room(60, grain=16)]),
)
def test_a_beginning_in_use_stays_and_few_others_do(acts: Sequence[tuple[int, bool]], room: Room) -> None:
    computing = Computing()
    forgotten: list[Beginning] = []
    prefixes = Prefixes(computing, forgotten.append, room)
    used: list[Beginning] = []
    for number, leave in acts:
        tokens = (number,) * (1 + number)
        if leave and used:
            prefixes.leave(used.pop(number % len(used)))
        elif prefixes.fits(tokens):
            inside = tokens in {each.tokens for each in used}
            before = len(computing.computed)
            used.append(prefixes.use(tokens))
            assert not (inside and len(computing.computed) > before)
        live = {each.tokens for each in used}
        assert live <= set(prefixes._known)
        assert set(prefixes._uses) == live
        assert room.holds(list(prefixes._known))
        assert len(forgotten) + len(prefixes._known) == prefixes.misses
        assert len(prefixes._known) - len(live) <= IDLE + 1
    assert prefixes.misses == len(computing.computed)
    for each in used:
        prefixes.leave(each)
    prefixes.clear()
    assert not prefixes._known
    assert not prefixes._uses


def turns(*contents: str) -> list[Message]:
    return [Message(role=("user", "assistant")[i % 2], content=content) for i, content in enumerate(contents)]


@pytest.mark.parametrize("template", [CHATML, None])
def test_a_boundary_is_where_prompts_with_the_same_examples_part(template: str | None) -> None:
    chat = Chat(make_tokenizer(template=template))
    boundaries = Boundaries(chat)
    examples = turns("tell me of the moon", "it shines")
    for question in ("a", "tell", "0", "Zebra", "Zebras", "x" * 50, ""):
        messages = [*examples, Message(role="user", content=question)]
        ids = chat.encode(messages)
        shared = boundaries.shared(messages, 2, ids)
        assert SHORTEST <= shared < len(ids)
        assert shared == boundaries.shared([*examples, Message(role="user", content="other")], 2, chat.encode(messages))
    assert boundaries.shared(examples[:1], 1, chat.encode(examples[:1])) == 0
    assert boundaries.shared(examples, 0, chat.encode(examples)) == 0


def test_a_prompt_that_is_no_more_than_the_beginning_keeps_a_token_of_its_own() -> None:
    chat = Chat(make_tokenizer())
    boundaries = Boundaries(chat)
    messages = [*turns("tell me of the moon", "it shines"), Message(role="user", content="x")]
    ids = chat.encode(messages)
    shared = boundaries.shared(messages, 2, ids)
    assert boundaries.shared(messages, 2, ids[:shared]) == 0
    assert boundaries.shared(messages, 2, ids[: shared + 1]) == shared
    assert boundaries.shared(messages, 2, (0, *ids)) == 0  # tokens merged across the boundary
    assert not set.intersection(*({*probe} for probe in PROBES))


def test_a_meter_adds_up() -> None:
    meter = SlotMeter(8)
    meter.running(2)
    meter.admitted(2, 30)
    meter.prefixes(1, 1)
    meter.running(5, 2)
    meter.admitted(3, 9)
    meter.prefixes(3, 0)
    assert meter.snapshot().rows_running == 5
    meter.running(0, 5)
    meter.out_of_memory()
    after = meter.snapshot()
    assert (after.rows_filled, after.cells, after.generated, after.out_of_memory) == (5, 39, 7, 1)
    assert (after.prefix_hits, after.prefix_misses, after.rows_running) == (4, 1, 0)
    assert meter.snapshot().busy_seconds == after.busy_seconds
