"""Row 13: out of memory above a limit that moves. Work is divided, at most log2 of the rows times; the limit is learnt;
rows come back when memory does; every text is what it would have been.
"""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import anyio
import pytest
import torch

from asyncgen.backends import open_backend, shortage
from asyncgen.backends.slots import decoder as decoding
from asyncgen.backends.slots.arrangement import Arrangement
from asyncgen.backends.slots.backend import Slots
from asyncgen.backends.slots.cache import Cache
from asyncgen.backends.slots.decoder import Decoder
from asyncgen.backends.slots.state import State
from asyncgen.backends.slots.worker import Worker
from asyncgen.errors import ModelError
from asyncgen.records import Completion, Message, Prompt, Sampling
from tests.backends.helpers import Wrapped, complete, config_for, make_messages, make_prompts, run
from tests.backends.slots.running import make, opened, said, slots_for
from tests.faults.conftest import Trials

pytestmark = [pytest.mark.usefixtures("no_thread_of_ours_is_left", "soon"), pytest.mark.timeout(600)]

Forward = Callable[..., Any]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for comes back a hundred times as fast as in life."""
    monkeypatch.setattr(shortage, "SHORTEST", 0.0005)
    monkeypatch.setattr(shortage, "LONGEST", 0.032)


def fails_above(limit: int, seen: list[int]) -> Callable[..., Any]:
    def forward_with_limit(forward: Forward, **inputs: Any) -> Any:
        rows = inputs["input_ids"].shape[0]
        seen.append(rows)
        if rows > limit:
            raise torch.OutOfMemoryError("simulated: not enough memory for so many rows")
        return forward(**inputs)

    return forward_with_limit


@pytest.mark.parametrize("limit", [1, 3, 4])
def test_out_of_memory_halves_the_batch_and_is_remembered(llama: Path, limit: int) -> None:
    conversations = [(Message(role="user", content=f"story {i:02d}"),) for i in range(16)]
    config = config_for(llama, batch_size=8, max_new_tokens=4)
    expected = run(config, conversations)
    seen: list[int] = []

    async def main() -> list[Completion]:
        async with open_backend(config) as backend:
            Wrapped(backend, fails_above(limit, seen))
            found = await complete(backend, make_prompts(backend, conversations, 4))
            assert 1 <= backend.snapshot().out_of_memory <= 3, "at most log2(batch) for a limit that does not move"
            return found

    found = anyio.run(main)
    assert [c.text for c in found] == [c.text for c in expected]
    assert max(seen) == 8
    assert seen.count(8) == 1, "the run learnt from the first time"


def test_what_did_not_fit_is_freed_before_it_is_tried_again(llama: Path) -> None:
    left: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def fails_once(forward: Forward, **inputs: Any) -> Any:
        if not left:
            big = torch.zeros(1000)
            left.append(weakref.ref(big))
            raise torch.OutOfMemoryError("simulated")
        alive.append(left[0]() is not None)
        return forward(**inputs)

    async def main() -> None:
        async with open_backend(config_for(llama)) as backend:
            Wrapped(backend, fails_once)
            await complete(backend, make_prompts(backend, make_messages(4), 3))

    gc.disable()  # counting references has to do
    try:
        anyio.run(main)
    finally:
        gc.enable()
    assert alive[0] is False


@pytest.mark.parametrize("limit", [5, 1])
def test_a_step_that_does_not_fit_is_made_with_fewer_rows(
    llama: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many rows run as fit; the others begin anew, and say the same."""

    async def main() -> None:
        async with opened(slots_for(llama, batch_size=8)) as backend:
            prompts = make(backend, 20)
            expected = said(await complete(backend, prompts))
            rows = failing(monkeypatch, above=limit)
            assert said(await complete(backend, prompts)) == expected
            first = rows[: next(place for place, count in enumerate(rows) if count <= limit)]
            assert len(first) <= 1 + 3, "one try more, and then one for each halving of eight"

    anyio.run(main)


def failing(monkeypatch: pytest.MonkeyPatch, *, above: int, times: int = 1 << 30) -> list[int]:
    """Lets so many steps of more than so many rows fail; the rows of each step that was tried."""
    compute = Decoder.compute
    rows: list[int] = []

    def fails(self: Decoder) -> Any:
        nonlocal times
        rows.append(self.live)
        if self.live > above and times:
            times -= 1
            raise torch.OutOfMemoryError("simulated")
        return compute(self)

    monkeypatch.setattr(Decoder, "compute", fails)
    return rows


def test_a_lack_for_a_moment_sends_nobody_away(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    async def main() -> None:
        async with opened(slots_for(llama, batch_size=8)) as backend:
            rows = failing(monkeypatch, above=2, times=1)
            await complete(backend, make(backend, 8, 30))
            assert rows[:3] == [8, 8, 8]

    anyio.run(main)


def test_rows_come_back_when_memory_does(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From one to eight, one more after every sixteen steps."""

    async def main() -> None:
        async with opened(slots_for(llama, batch_size=8)) as backend:
            rows = failing(monkeypatch, above=0, times=12)
            found = await complete(backend, make(backend, 60, 30))
            assert {each.finish_reason for each in found} <= {"stop", "length"}
            alone = rows.index(1)
            assert rows.index(8, alone) - alone < 12 + 16 * 8 + 60

    anyio.run(main)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("simulated"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
@pytest.mark.parametrize("kind", ["auto", "slots"])
def test_without_memory_to_begin_with_it_says_so_and_takes_no_other_engine(
    llama: Path, kind: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Decoder) -> None:
        raise error

    async def main() -> None:
        async with open_backend(config_for(llama, backend={"kind": kind, "device": "cpu"})):
            raise AssertionError("opened")

    monkeypatch.setattr(Decoder, "compute", fails)
    with pytest.raises(ModelError, match=r"not enough memory to begin with .*: (simulated|Default)"):
        anyio.run(main)


PLACES: dict[str, tuple[Any, str]] = {
    "a step": (Decoder, "compute"),
    "the model": (decoding, "forward"),
    "sampling": (Decoder, "_pick"),
    "taking tokens": (Decoder, "_take"),
    "noting tokens": (State, "take"),
    "seating": (State, "seat"),
    "a page": (Cache, "take"),
    "emptying a page": (Cache, "open"),
    "moving pages": (Cache, "compact"),
    "arranging": (Arrangement, "of"),
    "a prefix": (Decoder, "prefix"),
}


@pytest.mark.parametrize(
    ("when", "place"),
    [(when, place) for place in PLACES for when in ("before", "after") if (when, place) != ("after", "a page")],
)
def test_wherever_memory_lacks_at_random_every_text_is_the_same_and_nothing_is_kept(
    llama: Path, when: str, place: str, monkeypatch: pytest.MonkeyPatch, trials: Trials
) -> None:
    """Before the call, or after what it does: then it was half of something greater. A dozen times at most: a run in
    which every tenth step fails gives up long prompts, and that is another row.
    """
    owner, name = PLACES[place]
    real, rng, failures = getattr(owner, name), random.Random(place), [0]
    on = False

    def fails(*arguments: Any, **named: Any) -> Any:
        given = real(*arguments, **named) if when == "after" else None
        if on and failures[0] < 12 and (not failures[0] or rng.random() < 0.15):
            failures[0] += 1
            raise torch.OutOfMemoryError("simulated")
        return given if when == "after" else real(*arguments, **named)

    workers: list[Worker] = []

    class Noted(Worker):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            workers.append(self)

    class Last(Decoder):
        def __init__(self, *arguments: Any, slots: int, **named: Any) -> None:
            nonlocal on
            # To begin with less than one slot is an error that says so, and has a test of its own.
            wanted, on = on, on and slots > 1
            super().__init__(*arguments, slots=slots, **named)
            on = wanted

    monkeypatch.setattr("asyncgen.backends.slots.backend.Worker", Noted)
    monkeypatch.setattr("asyncgen.backends.slots.decoders.Decoder", Last)
    monkeypatch.setattr(owner, name, staticmethod(fails) if isinstance(real, MethodType) else fails)

    async def main(slots: int, seed: int) -> None:
        nonlocal on
        async with opened(slots_for(llama, batch_size=slots, max_new_tokens=30)) as backend:
            prompts = mixed(backend, 12, random.Random(seed))
            if seed not in undisturbed:
                undisturbed[seed] = said(await complete(backend, prompts))
            on, failures[0] = True, 0
            found = said(await complete(backend, prompts))
            on = False
            assert found == undisturbed[seed]
            decoder, prefixes = workers[-1]._decoder, workers[-1]._prefixes
            assert isinstance(decoder, Decoder)
            assert (decoder.cache.pages.used, decoder.cache.pages.reserved, decoder.free) == (1, 0, decoder.slots)
            assert not prefixes._uses
            assert failures[0], "nothing failed"

    for seed in range(trials(1, 4)):
        anyio.run(main, (3, 8, 1, 5)[seed], seed)


undisturbed: dict[int, dict[int, tuple[str, int, str]]] = {}
"""What rows say where nothing fails, by the seed of their prompts."""


def mixed(backend: Slots, count: int, rng: random.Random) -> list[Prompt]:
    """Prompts of all lengths and ways of sampling, most of them behind one of a few shared beginnings."""
    ways = (None, Sampling(0.9, logprobs=True), Sampling(1.0, repetition_penalty=1.3), Sampling(0.0))
    prompts = []
    for index in range(count):
        shared = rng.randrange(4)
        beginning = (Message(role="system", content=f"You are {'ABC'[shared - 1]}. " * 4),) if shared else ()
        messages = (*beginning, Message(role="user", content="x" * rng.choice((1, 9, 50, 70, 120))))
        new = rng.choice((1, 2, 12, 30))
        prepared = backend.prepare(messages, new, len(beginning))
        way = rng.choice(ways)
        prompts.append(Prompt(index, messages, index * 977 + 1, new, prepared=prepared, sampling=way))
    return prompts
