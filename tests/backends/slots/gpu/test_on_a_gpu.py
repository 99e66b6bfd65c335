"""On a CUDA device: captured steps say what uncaptured ones say, to the bit, in any slot and beside any neighbours."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch

from asyncgen.backends.slots.decoders import FixedDecoders
from asyncgen.backends.slots.gpu.recording import Captured, take_stream
from tests.backends.helpers import complete
from tests.backends.slots.running import make, opened, said, slots_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_gpu(directory: Path, **generation: Any) -> Any:
    config = slots_for(directory, **generation)
    backend = config.backend.model_copy(update={"device": "cuda", "dtype": "bfloat16"})
    return config.model_copy(update={"backend": backend})


@pytest.fixture
def _all_memory_back() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() < 192 << 20, "work space of matrix libraries, for two streams, is all there is"


@pytest.mark.usefixtures("_all_memory_back")
def test_a_rows_bits_depend_on_nothing_but_the_row(llama: Path) -> None:
    async def main() -> None:
        async with opened(on_gpu(llama, batch_size=32, max_new_tokens=60)) as backend:
            assert isinstance(backend._decoders, FixedDecoders), backend.notices
            prompts = make(backend, 300, 60)
            prompts = [replace(prompt, max_new_tokens=random.Random(prompt.index).randint(1, 60)) for prompt in prompts]
            first = said(await complete(backend, prompts))
            random.Random(7).shuffle(prompts)
            assert said(await complete(backend, prompts)) == first
            alone = said(await complete(backend, prompts[:1]))
            assert alone.items() <= first.items()

    anyio.run(main)


def test_a_capture_that_fails_leaves_nothing_behind() -> None:
    """Not in the allocators, not in the random numbers, not in earlier graphs."""
    device = torch.device("cuda", torch.cuda.current_device())
    recorder = Captured(take_stream(device))
    seen: list[float] = []
    x = torch.zeros(4, device=device)

    def add() -> None:
        x.add_(1)

    def double() -> None:
        x.mul_(2)

    first = recorder.record("good", add)
    with pytest.raises(RuntimeError):
        recorder.record("asks the device", lambda: seen.append(x.sum().item()))
    before = torch.cuda.memory_reserved()
    held = torch.empty(256 << 20, dtype=torch.uint8, device=device)
    del held
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before, "memory is given back"
    assert torch.randn(4, device=device).isfinite().all()
    x.zero_()
    torch.cuda.synchronize()
    first()
    torch.cuda.synchronize()
    assert x.tolist() == [1.0] * 4
    again = recorder.record("good again", double)
    x.fill_(3)
    torch.cuda.synchronize()
    again()
    torch.cuda.synchronize()
    assert x.tolist() == [6.0] * 4


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 0.0}, {"top_p": 0.95}, {"top_k": 40, "top_p": 0.9}, {"min_p": 0.02}, {"repetition_penalty": 1.2}],
)
def test_every_kind_of_sampling_is_captured(llama: Path, sampling: dict[str, Any]) -> None:
    async def main() -> None:
        async with opened(on_gpu(llama, batch_size=8, **sampling)) as backend:
            assert isinstance(backend._decoders, FixedDecoders), backend.notices
            found = await complete(backend, make(backend, 20, 30))
            assert all(done.finish_reason in ("stop", "length") for done in found)

    anyio.run(main)
