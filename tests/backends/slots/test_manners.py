"""How the slots backend behaves beside others: patience, threads, streams that are too short, little memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch

from asyncgen.backends.slots import decoders, threads
from asyncgen.backends.slots.cache import LayerShape
from asyncgen.backends.slots.decoder import TOGETHER, Decoder
from asyncgen.backends.slots.sizing import size
from asyncgen.backends.slots.threads import TURN, beside_others, choosing_threads, most_threads
from asyncgen.errors import BackendFailed
from asyncgen.packing import PromptPool, Window
from asyncgen.records import Completion
from tests.backends.slots.running import (
    Model,
    at_work,
    endless,
    make,
    opened,
    running_rows,
    said,
    slots_for,
    with_pages,
)

pytestmark = pytest.mark.usefixtures("no_thread_of_ours_is_left")


def test_it_can_be_asked_what_it_did_when_it_is_closed(llama: Path) -> None:
    async def main() -> None:
        async with opened(slots_for(llama, batch_size=2)) as backend, at_work(backend) as running:
            running.put(make(backend, 3))
            await running.until(3)
        assert backend.snapshot().generated > 0

    anyio.run(main)


def test_many_long_prompts_are_computed_a_group_at_a_time(llama: Path) -> None:
    """Between two groups there is a step: rows that run go on, and whoever wants to leave may."""

    async def main() -> None:
        passes: list[int] = []
        async with opened(slots_for(llama, batch_size=16)) as backend:

            def note(arguments: dict[str, Any]) -> None:
                passes.append(arguments["input_ids"].shape[1])

            Model(backend, note)
            prompts = []
            for prompt in make(backend, 16, 8):
                ids = prompt.prepared.token_ids * 9
                prompts.append(prompt.with_prepared(replace(prompt.prepared, token_ids=ids, length=len(ids))))
            async with at_work(backend) as running:
                running.put(prompts)
                await running.until(16)
        large = [tokens > 64 for tokens in passes]
        assert sum(passes[at] for at in range(len(passes)) if large[at]) > TOGETHER
        assert not any(one and other for one, other in pairwise(large)), passes

    anyio.run(main)


def test_a_prompt_that_never_fits_holds_nobody_up(llama: Path) -> None:
    async def main() -> None:
        async with opened(slots_for(llama, batch_size=4)) as backend:
            with_pages(backend, 8)
            Model(backend, endless)
            async with at_work(backend) as running:
                running.put(make(backend, 1, 200))
                await running_rows(backend, 1)
                running.put([replace(make(backend, 1, 450)[0], index=7), *make(backend, 2, 5, first=8)])
                found = said(await running.until(3))
            assert found[7][2] == "refused"
            assert set(found) == {7, 8, 9}, "and the long one still runs"

    anyio.run(main)


def test_a_stream_that_is_too_short_is_an_error_and_not_a_loss(llama: Path) -> None:
    async def main() -> None:
        async with opened(slots_for(llama, batch_size=2)) as backend:
            pool = PromptPool(Window(100, goal=None))
            pool.put(make(backend, 6))
            send, receive = anyio.create_memory_object_stream[tuple[Completion, ...]](1)
            with send, receive, pytest.raises(BackendFailed, match="too short"):
                await backend.run(pool, send)

    anyio.run(main)


def test_one_engine_at_a_time_changes_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with choosing_threads() as mine:
            assert mine.open
            torch.set_num_threads(1)
            with choosing_threads() as theirs:
                assert not theirs.open
            assert most_threads() == 2
        assert torch.get_num_threads() == 2
        assert threads.most_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("own", "meanwhile"), [(0.005, TURN), (0.00025, 0.00025)])
def test_a_gpus_engines_shorten_turns_until_the_last_has_left(own: float, meanwhile: float) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(own)
    try:
        first, second = beside_others(torch.device("cuda")), beside_others(torch.device("cuda"))
        assert not first.__enter__().open
        second.__enter__()
        first.__exit__(None, None, None)
        assert sys.getswitchinterval() == pytest.approx(meanwhile)
        second.__exit__(None, None, None)
        assert sys.getswitchinterval() == pytest.approx(own)
        with beside_others(torch.device("cpu")):
            assert sys.getswitchinterval() == pytest.approx(own)
    finally:
        sys.setswitchinterval(before)


def test_little_memory_is_never_exceeded() -> None:
    layers = [LayerShape(heads=4, kv_heads=2, key_size=64, value_size=64)] * 2
    common = {"item_bytes": 4, "rows": "auto", "max_new_tokens": 512, "context_length": 4096, "gpu": False}
    per_page = 64 * sum(layer.bytes_per_token(4) for layer in layers)
    for free in (0, 1_000_000, 20_000_000, 10**9, 10**11):
        found = size(layers, free_bytes=free, **common)  # type: ignore[arg-type]  # a dictionary of several types
        assert (found.pages - 1) * per_page <= 0.6 * free
        assert found.slots * 12 <= found.pages - 1
    assert found.slots == 128


def test_memory_that_is_not_to_be_had_after_all_makes_fewer_slots(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of the process, or a neighbour that was quicker: found out when the cache is allocated."""

    class Greedy(Decoder):
        def __init__(self, model: Any, layers: Sequence[LayerShape], *, slots: int, **others: Any) -> None:
            if slots > 2:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1697447936 bytes")
            super().__init__(model, layers, slots=slots, **others)

    async def main() -> None:
        async with opened(slots_for(llama, batch_size=9)) as backend, at_work(backend) as running:
            running.put(make(backend, 7))
            found = await running.until(7)
            assert all(not completion.error for completion in found)
            assert backend.snapshot().slots == backend.limits.rows == 2

    monkeypatch.setattr(decoders, "Decoder", Greedy)
    anyio.run(main)
