"""Row 14: out of memory for one prompt alone. Only that one is rejected, with its reason; and where nothing fits for a
while, nobody is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncgen.backends import open_backend, shortage
from asyncgen.backends.shortage import Aside
from asyncgen.backends.slots.backend import Slots
from asyncgen.backends.slots.decoder import Decoder
from asyncgen.records import Completion, Prepared, Prompt
from tests.backends.helpers import Wrapped, complete, config_for, make_messages, make_prompts
from tests.backends.slots.running import Model, at_work, make, opened, said, slots_for

pytestmark = [pytest.mark.usefixtures("no_thread_of_ours_is_left"), pytest.mark.timeout(120)]

Forward = Callable[..., Any]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for comes back a hundred times as fast as in life."""
    monkeypatch.setattr(shortage, "SHORTEST", 0.0005)
    monkeypatch.setattr(shortage, "LONGEST", 0.032)
    monkeypatch.setattr(shortage, "MINUTE", 0.2)


@pytest.mark.usefixtures("soon")
def test_a_batch_with_one_that_does_not_fit_loses_that(llama: Path) -> None:
    conversations = make_messages(5)
    conversations[3] = ({"role": "user", "content": "long " * 60},)

    def short_only(forward: Forward, **inputs: Any) -> Any:
        if inputs["attention_mask"].shape[1] > 200:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return forward(**inputs)

    async def main() -> list[Completion]:
        async with open_backend(config_for(llama)) as backend:
            Wrapped(backend, short_only)
            return await complete(backend, make_prompts(backend, conversations, 12))

    found = anyio.run(main)
    assert [c.finish_reason == "error" for c in found] == [False, False, False, True, False]
    assert found[3].error.startswith("out of memory: ")
    assert not found[3].retryable


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("limit", [64, 96, 200])
def test_slots_lose_those_that_do_not_fit_and_no_other(llama: Path, limit: int) -> None:
    """The model has memory for so many tokens at a time."""

    def fails(arguments: dict[str, Any]) -> None:
        if arguments["input_ids"].shape[1] > limit:
            raise torch.OutOfMemoryError("simulated")

    async def main() -> None:
        async with opened(slots_for(llama, batch_size=8)) as backend:
            prompts = make(backend, 20)
            expected = said(await complete(backend, prompts))
            Model(backend, fails)
            found = await complete(backend, prompts)
            assert backend.snapshot().out_of_memory > 0
        for each in found:
            fits = -(-len(each.prompt.prepared.token_ids) // 16) * 16 <= limit
            wanted = expected[each.prompt.index] if fits else ("", 0, "error")
            assert said([each])[each.prompt.index] == wanted, each.error
            assert fits or each.error.startswith("out of memory: ")

    anyio.run(main)


class Lack:
    """Of memory, for so many calls of the model; then it is back."""

    def __init__(self, calls: float) -> None:
        self.left = calls

    def __call__(self, *_: object) -> None:
        self.left -= 1
        if self.left >= 0:
            raise torch.OutOfMemoryError("simulated")


def around(lack: Lack) -> Callable[..., Any]:
    def forward_if_it_fits(forward: Forward, **inputs: Any) -> Any:
        lack()
        return forward(**inputs)

    return forward_if_it_fits


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("calls", [1, 30, 150])
@pytest.mark.parametrize("kind", ["slots", "static"])
def test_where_nothing_fits_for_a_while_nobody_is_lost(
    llama: Path, kind: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortage, "MINUTE", 100.0)
    config = config_for(llama, backend={"kind": kind, "device": "cpu"}, batch_size=4, temperature=0.9)

    async def main() -> None:
        async with open_backend(config) as backend:
            prompts = make_prompts(backend, make_messages(10), 12)
            expected = said(await complete(backend, prompts))
            lack = Lack(calls)
            if isinstance(backend, Slots):
                Model(backend, lack)
            else:
                Wrapped(backend, around(lack))
            assert said(await complete(backend, prompts)) == expected
            assert lack.left < 0

    anyio.run(main)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("kind", ["slots", "static"])
def test_where_nothing_ever_fits_it_comes_to_an_end(llama: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortage, "MINUTE", 0.01)
    config = config_for(llama, backend={"kind": kind, "device": "cpu"}, batch_size=4)

    async def main() -> None:
        async with open_backend(config) as backend:
            lack = Lack(float("inf"))
            prompts = make_prompts(backend, make_messages(6), 12)
            if isinstance(backend, Slots):
                Model(backend, lack)
            else:
                Wrapped(backend, around(lack))
            for each in await complete(backend, prompts):
                assert (each.finish_reason, each.retryable) == ("error", False)
                assert each.error.startswith("out of memory: ")

    anyio.run(main)


@pytest.mark.usefixtures("soon")
def test_a_row_whose_steps_do_not_fit_is_lost_and_no_other(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails late, alone, every time it comes so far."""
    compute = Decoder.compute

    def fails(self: Decoder) -> Any:
        if any(seat.row.prompt.index == 3 and len(seat.row.tokens) > 5 for seat in self.seats):
            raise torch.OutOfMemoryError("simulated")
        return compute(self)

    async def main() -> None:
        async with opened(slots_for(llama, batch_size=4)) as backend:
            prompts = make(backend, 10)
            expected = said(await complete(backend, prompts))
            monkeypatch.setattr(Decoder, "compute", fails)
            found = said(await complete(backend, prompts))
            assert found == expected | {3: ("", 0, "error")}

    anyio.run(main)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("prompts", [1, 3])
@pytest.mark.parametrize("after", [0, 4])
def test_where_no_step_ever_fits_it_comes_to_an_end(
    llama: Path, prompts: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though each prompt can be computed, and has a token or five: that is no progress."""
    compute = Decoder.compute

    def fails(self: Decoder) -> Any:
        if any(len(seat.row.tokens) > after for seat in self.seats):
            raise torch.OutOfMemoryError("simulated")
        return compute(self)

    async def main() -> None:
        async with opened(slots_for(llama, batch_size=4, temperature=0.9)) as backend:
            wanted = make(backend, prompts, 30)
            expected = said(await complete(backend, wanted))
            monkeypatch.setattr(Decoder, "compute", fails)
            for each in await complete(backend, wanted):
                short = expected[each.prompt.index][1] <= after + 1
                assert each.finish_reason == "error" or short

    anyio.run(main)


@pytest.mark.parametrize("how", ["one", "all"])
def test_what_waits_for_memory_can_be_cancelled(llama: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortage, "SHORTEST", 1e6)
    monkeypatch.setattr(shortage, "LONGEST", 1e6)

    async def main() -> None:
        async with opened(slots_for(llama, batch_size=2)) as backend:
            Model(backend, Lack(float("inf")))
            with anyio.fail_after(30):
                async with at_work(backend) as running:
                    prompts = make(backend, 1)
                    running.put(prompts)
                    while not backend.snapshot().out_of_memory:  # noqa: ASYNC110  # it runs in another thread
                        await anyio.sleep(0.001)
                    if how == "one":
                        backend.cancel(prompts[0])
                        assert said(await running.until(1)) == {0: ("", 0, "cancelled")}

    anyio.run(main)


@cache
def prompt(index: int, length: int = 10) -> Prompt:
    """Always the same one: it is known by its identity."""
    return Prompt(index, (), seed=index, max_new_tokens=10, prepared=Prepared(length, ()))


@given(st.lists(st.sampled_from(["fails", "another fits", "it fits"]), max_size=60))
def test_a_prompt_is_given_up_for_failing_while_others_fit(events: list[str]) -> None:
    """Against a plain count of failures that had another prompt's success before them."""
    aside, own, other_fits, now = Aside(), 0, True, 0.0
    for event in events:
        now += 1e-6
        if event == "fails":
            own += other_fits
            other_fits = False
            assert aside.failed(prompt(1), now) == (own == shortage.TRIES)
            if own == shortage.TRIES:
                return
            assert len(aside) == 1
            assert aside.due(now + shortage.LONGEST) == (prompt(1),)
        elif event == "another fits":
            aside.fitted([prompt(2, 5)])
            other_fits = True
        else:
            aside.fitted([prompt(1)])
            aside.finished(prompt(1))
            own, other_fits = 0, True


@given(st.lists(st.floats(0.01, 30), min_size=1, max_size=80), st.integers(1, 5), st.booleans())
def test_while_nothing_fits_one_at_most_is_given_up_in_a_minute_and_one_is(
    pauses: list[float], prompts: int, begins: bool
) -> None:
    """``begins``: each can be computed, alone, and then no step of it fits: that is no success."""
    aside, now, last = Aside(), 0.0, 0.0
    stage: shortage.Stage = "step" if begins else "prompt"
    for turn, pause in enumerate(pauses):
        one = prompt(turn % prompts)
        if begins:
            aside.fitted([one], "prompt")
        if aside.failed(one, now, stage):
            assert now - last > shortage.MINUTE
            last = now
        assert now - last <= shortage.MINUTE + 30 * (prompts + 1)
        now += pause


def test_once_a_length_was_given_up_the_next_one_costs_no_patience() -> None:
    aside = Aside()
    for turn in range(shortage.TRIES):
        aside.fitted([prompt(9, 5)])
        given_up = aside.failed(prompt(1, 100), turn)
    assert given_up
    assert not aside.failed(prompt(2, 99), 0.0)
    assert aside.failed(prompt(3, 100), 0.0)
    aside.fitted([prompt(4, 100)])  # it fits again
    assert not aside.failed(prompt(5, 100), 0.0)


def test_pauses_double_up_to_the_longest() -> None:
    assert [shortage.pause_after(n) for n in (1, 2, 3, 7, 8, 10**6)] == [0.05, 0.1, 0.2, 3.2, 3.2, 3.2]
