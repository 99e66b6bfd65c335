"""The slots backend over the decoder with fixed shapes: its thread, its memory, its refusals, played on a CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch

from asyncgen.backends.sampling import Sampler
from asyncgen.backends.slots import decoders
from asyncgen.backends.slots.decoders import FixedDecoders, PlainDecoders
from asyncgen.backends.slots.exchange import Exchange
from asyncgen.backends.slots.gpu import opening
from asyncgen.backends.slots.gpu.lanes import Lanes
from asyncgen.backends.slots.gpu.opening import Means
from asyncgen.backends.slots.unsupported import Unsupported
from asyncgen.engine import Engine
from asyncgen.records import Completion, Prompt
from tests.backends.helpers import complete
from tests.backends.slots.gpu.plain import PlainAttention
from tests.backends.slots.running import at_work, make, opened, running_rows, said, slots_for

pytestmark = pytest.mark.usefixtures("no_thread_of_ours_is_left")

MEANS = Means(PlainAttention(), Sampler, captured=False)


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine believes that this CPU is a GPU, as far as that goes."""
    monkeypatch.setattr(decoders, "_means", lambda *_: MEANS)


def shared(prompts: list[Prompt], count: int) -> list[Prompt]:
    """With a shared beginning of ``count`` tokens."""
    beginning = tuple(range(30, 30 + count))
    return [
        replace(
            prompt, prepared=replace(prompt.prepared, token_ids=(*beginning, *prompt.prepared.token_ids), shared=count)
        )
        for prompt in prompts
    ]


async def told(llama: Path, prompts: int = 14, **generation: Any) -> dict[int, tuple[str, int, str]]:
    async with opened(slots_for(llama, batch_size=5, **generation)) as backend:
        found = await complete(backend, shared(make(backend, prompts, 20), 100))
        assert backend.snapshot().prefix_misses == 1
        return said(found)


def test_it_tells_what_the_plain_decoder_tells(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = anyio.run(told, llama)
    monkeypatch.setattr(decoders, "_means", lambda *_: MEANS)
    assert anyio.run(told, llama) == expected


@pytest.mark.usefixtures("fixed")
def test_stop_strings_cancelling_and_streams(llama: Path) -> None:
    """What only the host knows comes late to the device, and is none the worse for it."""

    async def main() -> None:
        async with opened(slots_for(llama, batch_size=4, max_new_tokens=400)) as backend:
            assert isinstance(backend._decoders, FixedDecoders)
            first = await complete(backend, make(backend, 6, 30))
            stops = [done.text[len(done.text) // 2 :][:2] for done in first]
            again = await complete(
                backend, [replace(done.prompt, stop=(stop,)) for done, stop in zip(first, stops, strict=True)]
            )
            for whole, cut, stop in zip(first, again, stops, strict=True):
                assert cut.text == whole.text.partition(stop)[0].strip()
                assert cut.finish_reason == "stop"
            async with at_work(backend) as running:
                prompts = make(backend, 9, 400)
                running.put(prompts)
                await running_rows(backend, 4)
                for prompt in prompts[:4]:
                    backend.cancel(prompt)
                found = await running.until(4)
            assert {(done.prompt.index, done.finish_reason) for done in found} == {
                (index, "cancelled") for index in range(4)
            }

    anyio.run(main)


@pytest.mark.usefixtures("fixed")
def test_a_beginning_that_is_too_long_to_be_shared_is_computed_for_each(llama: Path) -> None:
    async def main() -> None:
        async with opened(slots_for(llama, batch_size=3)) as backend:
            prompts = shared(make(backend, 6, 10), 100)
            expected = said(await complete(backend, prompts))
            hits = backend.snapshot().prefix_hits
            assert hits
            found = backend._decoders
            assert isinstance(found, FixedDecoders)
            found._fixed = replace(found._fixed, prefix_room=replace(found.prefix_room, most=99))
            assert said(await complete(backend, prompts)) == expected
            assert backend.snapshot().prefix_hits == hits

    anyio.run(main)


class OutOfMemory(PlainAttention):
    """Fails whenever it is told to."""

    failing = False

    def decode(self, *arguments: Any) -> Any:
        if self.failing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().decode(*arguments)


@pytest.mark.parametrize("times", [1, 5])
def test_a_step_that_does_not_fit_loses_nobody(llama: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """It cannot be, but where it is: rows begin anew, behind beginnings that stay."""
    attention = OutOfMemory()
    monkeypatch.setattr(decoders, "_means", lambda *_: replace(MEANS, attention=attention))
    monkeypatch.setattr(Exchange, "pause", lambda *_: passing())
    failures = [0]

    def passing() -> None:
        failures[0] += 1
        attention.failing = failures[0] < times

    async def main() -> None:
        async with opened(slots_for(llama, batch_size=3)) as backend:
            prompts = shared(make(backend, 5, 10), 100)
            expected = said(await complete(backend, prompts))
            attention.failing = True
            with anyio.fail_after(60):
                found = said(await complete(backend, prompts))
            assert found == expected
            assert failures[0] == times

    anyio.run(main)


@pytest.mark.usefixtures("fixed")
def test_the_engine_shares_it(llama: Path) -> None:
    async def main() -> None:
        texts: dict[int, set[str]] = {}

        async def ask(engine: Engine, seed: int) -> None:
            done: Completion = await engine.generate("the moon", seed=seed, max_new_tokens=9, temperature=0.9)
            texts.setdefault(seed, set()).add(done.text)

        for _ in range(2):
            async with Engine(slots_for(llama, batch_size=3)) as engine, anyio.create_task_group() as tasks:
                for seed in (1, 2, 3, 1, 2, 3, 4):
                    tasks.start_soon(ask, engine, seed)
        assert [len(texts[seed]) for seed in (1, 2, 3, 4)] == [1, 1, 1, 1]

    anyio.run(main)


@pytest.mark.usefixtures("fixed")
@pytest.mark.parametrize("sampling", [{"top_p": 0.9}, {"temperature": 0.0}, {"top_k": 7, "min_p": 0.01}])
def test_a_run_begins_with_what_its_sampling_needs(llama: Path, sampling: dict[str, Any]) -> None:
    async def main() -> None:
        async with opened(slots_for(llama, batch_size=3, **sampling)) as backend:
            assert isinstance(backend._decoders, FixedDecoders)
            decoder = backend._decoders._fixed.decoder
            before = len(decoder._kinds.recorded)
            assert len(await complete(backend, make(backend, 5))) == 5
            assert len(decoder._kinds.recorded) == before == 1

    anyio.run(main)


class Wrong(PlainAttention):
    """Forgets the prefix."""

    def decode(self, queries: Any, keys: Any, values: Any, pool: Any, lanes: Lanes, scale: float) -> Any:
        nothing = torch.full_like(lanes.tile_prefix, -1)
        alone = replace(lanes, prefix=torch.full_like(lanes.prefix, -1), tile_prefix=nothing)
        return super().decode(queries, keys, values, pool, alone, scale)


class Failing(PlainAttention):
    """Asks the device something, which a capture does not allow."""

    def decode(self, *_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize(("attention", "why"), [(Wrong(), "not what the model says"), (Failing(), "not permitted")])
def test_where_fixed_shapes_do_not_work_the_plain_decoder_does_and_a_sentence_says_so(
    llama: Path, monkeypatch: pytest.MonkeyPatch, attention: PlainAttention, why: str
) -> None:
    expected = anyio.run(told, llama)
    monkeypatch.setattr(decoders, "_means", lambda *_: replace(MEANS, attention=attention))
    assert anyio.run(told, llama) == expected

    async def main() -> None:
        async with opened(slots_for(llama)) as backend:
            assert isinstance(backend._decoders, PlainDecoders)
            [notice] = [each for each in backend.notices if "captured" in each]
            assert why in notice

    anyio.run(main)


class NoCompiler:
    """Layers that cannot be compiled."""

    def __init__(self, model: Any) -> None:
        self.layer = model.get_decoder().layers[0]

    def on(self) -> None:
        def refuse(*_: Any, **__: Any) -> Any:
            raise RuntimeError("InductorError: no C++ compiler")

        vars(self.layer)["forward"] = refuse

    def off(self) -> None:
        del vars(self.layer)["forward"]


def test_layers_that_cannot_be_compiled_are_as_they_were(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured steps are worth far more."""
    monkeypatch.setattr(decoders, "_means", lambda *_: MEANS)
    expected = anyio.run(told, llama)
    monkeypatch.setattr(opening, "Compiling", NoCompiler)
    monkeypatch.setattr(decoders, "_means", lambda *_: replace(MEANS, compiled=True))
    assert anyio.run(told, llama) == expected

    async def main() -> None:
        async with opened(slots_for(llama)) as backend:
            assert isinstance(backend._decoders, FixedDecoders)
            assert any("not compiled" in each and "no C++ compiler" in each for each in backend.notices)

    anyio.run(main)


def test_without_triton_a_sentence_says_so(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> Means:
        raise Unsupported("a package is missing (No module named 'triton')")

    monkeypatch.setattr(decoders, "_means", missing)

    async def main() -> None:
        async with opened(slots_for(llama)) as backend:
            assert any("triton" in notice for notice in backend.notices)

    anyio.run(main)


def test_fewer_slots_where_memory_is_short(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each page were dear; and once the allocator fails all the same."""
    monkeypatch.setattr(decoders, "_means", lambda *_: MEANS)
    real, tried = opening._Opening._decoder, []

    def limited(self: Any, slots: int, pages: int, *others: Any) -> Any:
        tried.append((slots, pages))
        if pages > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, slots, pages, *others)

    monkeypatch.setattr(opening._Opening, "_decoder", limited)

    async def main() -> None:
        async with opened(slots_for(llama, batch_size=16, max_new_tokens=100)) as backend:
            assert isinstance(backend._decoders, FixedDecoders)
            assert backend.limits.rows == 4
            assert any("memory holds 4 rows at once, not 16" in notice for notice in backend.notices)
            assert len(await complete(backend, make(backend, 9))) == 9

    anyio.run(main)
    assert [slots for slots, pages in tried if pages > 1] == [16, 8, 4]
