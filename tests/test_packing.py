"""choose(), Window and PromptPool: nothing lost, nothing twice, bounds kept, nobody starved, nothing hangs."""

from __future__ import annotations

import random

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncgen.packing import CANDIDATES, PATIENCE, PromptPool, Waiting, Window, choose
from asyncgen.records import Prepared, Prompt

pytestmark = pytest.mark.anyio

lengths = st.lists(st.integers(1, 2000), max_size=60)
rows = st.integers(1, 20)
budgets = st.none() | st.integers(1, 40_000)
spreads = st.sampled_from([0.0, 0.5, 0.9, 1.0])


def waiting(lengths: list[int], new_tokens: int = 100) -> list[Waiting]:
    return [Waiting(index, length, new_tokens) for index, length in enumerate(lengths)]


def prompt(index: int, length: int = 10, attempt: int = 1) -> Prompt:
    return Prompt(index, (), attempt=attempt, max_new_tokens=10, prepared=Prepared(length))


@settings(deadline=None)
@given(lengths, rows, budgets, spreads, st.booleans())
def test_choose_keeps_cap_budget_and_spread(
    lengths: list[int], rows: int, tokens: int | None, spread: float, due: bool
) -> None:
    batch = choose(waiting(lengths), rows, tokens=tokens, spread=spread, due=due)
    chosen = [lengths[i] for i in batch.positions]
    assert len(set(batch.positions)) == len(batch.positions)
    assert bool(chosen) == bool(lengths)
    assert chosen == sorted(chosen, reverse=True)
    assert len(chosen) <= rows
    if len(chosen) > 1:
        assert tokens is None or len(chosen) * (chosen[0] + 100) <= tokens
        assert chosen[-1] >= spread * chosen[0]
        assert 1 - sum(chosen) / (len(chosen) * chosen[0]) <= 1 - spread + 1e-9
    if due and lengths:
        assert 0 in batch.positions


@settings(deadline=None)
@given(lengths.filter(bool), rows, spreads)
def test_no_batch_of_neighbours_holds_more_rows(lengths: list[int], rows: int, spread: float) -> None:
    batch = choose(waiting(lengths), rows, spread=spread)
    ordered = sorted(lengths, reverse=True)
    best = max(
        sum(1 for other in ordered[at : at + rows] if other >= spread * longest) for at, longest in enumerate(ordered)
    )
    assert len(batch.positions) == best


@settings(deadline=None)
@given(lengths, rows, budgets)
def test_full_means_that_no_prompt_could_be_added(lengths: list[int], rows: int, tokens: int | None) -> None:
    batch = choose(waiting(lengths), rows, tokens=tokens)
    if batch.full:
        longest = max(lengths[i] for i in batch.positions)
        count = len(batch.positions) + 1
        assert count > rows or (tokens is not None and count * (longest + 100) > tokens)
    else:
        assert len(batch.positions) < rows


def test_an_oversize_prompt_goes_alone() -> None:
    assert choose(waiting([5000]), 8, tokens=1000).positions == (0,)
    assert choose(waiting([5000, 10, 10]), 8, tokens=1000).positions == (1, 2)
    assert choose(waiting([5000, 10, 10]), 8, tokens=1000, due=True).positions == (0,)


@settings(deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=80), rows, spreads, st.integers(0, 2**32))
async def test_the_pool_gives_each_prompt_once_and_starves_none(
    lengths: list[int], rows: int, spread: float, seed: int
) -> None:
    rng = random.Random(seed)
    window = Window(len(lengths), len(lengths))
    pool = PromptPool(window)
    pending = [prompt(index, length) for index, length in enumerate(lengths)]
    window.plan(len(pending))
    got: list[int] = []
    age = 0
    while len(got) < len(lengths):
        arriving = rng.randint(0, len(pending))
        pool.put(pending[:arriving])
        del pending[:arriving]
        present = set(range(len(lengths) - len(pending))) - set(got)
        if not pending:
            window.end()  # then nothing is worth waiting for
        batch = pool.take_ready(rows, spread=spread)
        got += [p.index for p in batch]
        assert bool(batch) <= bool(present)
        assert bool(batch) >= bool(present and not pending)
        if batch:
            age = 0 if min(present) in got else age + 1
            assert age <= PATIENCE, "the most urgent prompt was passed over too often"
    assert sorted(got) == list(range(len(lengths)))


async def test_take_waits_for_a_full_batch_while_the_producer_can_add() -> None:
    window = Window(8, None)
    pool = PromptPool(window)
    taken: list[tuple[Prompt, ...]] = []

    async def take() -> None:
        taken.append(await pool.take(4))

    async with anyio.create_task_group() as group:
        window.plan(3)
        pool.put([prompt(i) for i in range(3)])
        group.start_soon(take)
        await wait_all_tasks_blocked()
        assert not taken, "three of four wait and the producer could add one"
        window.plan(1)
        pool.put([prompt(3)])
        await wait_all_tasks_blocked()
        assert len(taken[0]) == 4


@pytest.mark.parametrize("blocked_on", ["window", "goal", "end"])
async def test_take_gives_what_there_is_when_the_producer_cannot_add(blocked_on: str) -> None:
    window = Window(3 if blocked_on == "window" else 8, 3 if blocked_on == "goal" else None)
    pool = PromptPool(window)
    taken: list[tuple[Prompt, ...]] = []

    async def produce() -> None:
        window.plan(3)
        pool.put([prompt(i) for i in range(3)])
        if blocked_on == "end":
            window.end()
        else:
            await window.wait_for_room()

    async def take() -> None:
        taken.append(await pool.take(4))

    async with anyio.create_task_group() as group:
        group.start_soon(take)
        group.start_soon(produce)
        await wait_all_tasks_blocked()
        assert [p.index for p in taken[0]] == [0, 1, 2]
        window.end()
        pool.close()
        group.cancel_scope.cancel()


async def test_a_decision_that_frees_the_window_does_not_start_a_small_batch() -> None:
    """The producer is woken too; the generator must not mistake it for blocked because it has not run yet."""
    window = Window(4, None)
    pool = PromptPool(window)
    taken: list[int] = []

    async def produce() -> None:
        index = 0
        while room := await window.wait_for_room():
            window.plan(room)
            pool.put([prompt(index + n) for n in range(room)])
            index += room

    async def take() -> None:
        while batch := await pool.take(4):
            taken.append(len(batch))

    async with anyio.create_task_group() as group:
        group.start_soon(take)
        group.start_soon(produce)
        await wait_all_tasks_blocked()
        for _ in range(5):
            for _ in range(4):
                window.decide(accepted=True)
            await wait_all_tasks_blocked()
        assert taken == [4] * 6
        group.cancel_scope.cancel()


async def test_closing_ends_take_and_lets_go() -> None:
    pool = PromptPool(Window(2, None))
    ended = False

    async def take() -> None:
        nonlocal ended
        assert await pool.take(9, spread=1.0) == ()
        ended = True

    async with anyio.create_task_group() as group:
        group.start_soon(take)
        await wait_all_tasks_blocked()
        assert not ended
        pool.close()
    assert ended
    pool.put([prompt(0)])
    assert len(pool) == 0


async def test_of_very_many_waiting_only_the_most_urgent_are_looked_at() -> None:
    """Looking at a million takes seconds of the event loop; and what is not looked at is nothing to wait for."""
    count = CANDIDATES + 100
    window = Window(2 * count, None)
    pool = PromptPool(window)
    window.plan(count)
    pool.put([prompt(index, length=min(index, CANDIDATES)) for index in reversed(range(count))])
    with anyio.fail_after(20):
        [alone] = await pool.take(8, spread=1.0)
    assert alone.index == 0, "a hundred equally long ones are too far behind"
    assert len(pool) == count - 1
    got = [p.index for p in pool.take_nowait(2 * count)]
    assert sorted(got) == list(range(1, count)), "all that a large batch can hold are looked at"


@given(st.lists(st.integers(1, 64), min_size=1, max_size=60), rows)
async def test_what_rows_in_flight_take_comes_in_order(lengths: list[int], rows: int) -> None:
    """So that a run that is stopped has little to finish but what runs."""
    window = Window(len(lengths), None)
    pool = PromptPool(window)
    window.plan(len(lengths))
    pool.put([prompt(index, length) for index, length in enumerate(lengths)])
    taken = [p.index for p in pool.take_nowait(rows)]
    assert taken == [*range(min(rows, len(lengths)))]
    pool.drain()
    assert len(pool) == 0
    assert window.left == len(taken)


@given(st.lists(st.integers(1, 64), min_size=9, max_size=60, unique=True), st.integers(2, 8))
async def test_a_run_that_is_stopping_generates_in_order(lengths: list[int], rows: int) -> None:
    """What is cut short after some seconds has then the most to write; sorted by length it may have nothing at all."""
    window = Window(len(lengths), None)
    pool = PromptPool(window)
    window.plan(len(lengths))
    window.end()
    pool.put([prompt(index, length) for index, length in enumerate(lengths)])
    begun = {p.index for p in pool.take_ready(rows)}
    pool.drain()
    for _ in range(len(pool)):
        least = sorted(pool._order)[:rows]
        taken = [p.index for p in pool.take_ready(rows)]
        assert sorted(taken) == least
    assert not pool.take_ready(rows)
    assert begun


async def test_draining_keeps_what_must_be_decided_before_the_highest_index_taken() -> None:
    window = Window(20, None)
    pool = PromptPool(window)
    window.plan(10)
    pool.put([prompt(index, length=10 + index) for index in range(6)])
    taken = pool.take_ready(2)
    assert [p.index for p in taken] in ([5, 4], [1, 0])
    highest = max(p.index for p in taken)
    pool.drain()
    assert len(pool) == highest + 1 - len(taken)
    pool.put([prompt(highest + 1), prompt(taken[0].index, attempt=2)])
    assert len(pool) == highest + 2 - len(taken), "the retry comes in, the later index does not"
    settled = anyio.Event()

    async def wait() -> None:
        await window.wait_until_settled()
        settled.set()

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        for _ in range(highest):
            window.decide(accepted=True)
        await wait_all_tasks_blocked()
        assert not settled.is_set()
        window.decide(accepted=False)


@settings(deadline=None)
@given(st.integers(1, 20), st.none() | st.integers(1, 40), st.lists(st.booleans(), max_size=120), st.integers(0, 9))
async def test_the_window_never_plans_more_than_is_wanted(
    size: int, goal: int | None, verdicts: list[bool], start: int
) -> None:
    window = Window(size, goal, start=start)
    verdicts = [*verdicts, *[True] * 40]
    for verdict in verdicts:
        window.plan(window.room())
        assert window.undecided <= size
        assert goal is None or window.accepted + window.undecided <= goal
        if window.undecided == 0:
            assert goal is not None
            assert window.accepted == goal
            break
        window.decide(accepted=verdict)
    assert goal is None or window.accepted == goal, "the last index decided is an accepted one"
    assert window.reached == (goal is not None)


async def test_settled_needs_an_end_and_every_decision() -> None:
    window = Window(4, None)
    window.plan(2)
    settled = anyio.Event()

    async def wait() -> None:
        await window.wait_until_settled()
        settled.set()

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        window.decide(accepted=True)
        window.end()
        await wait_all_tasks_blocked()
        assert not settled.is_set()
        window.decide(accepted=False)
        await checkpoint()
        await settled.wait()
