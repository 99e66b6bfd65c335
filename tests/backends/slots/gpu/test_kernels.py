"""Our kernels against a loop in float64, to the bit where a row must not notice its neighbours, and through ptxas.

Where there is no CUDA device they are interpreted. Triton decides that by the environment when a function is declared:
ours are declared here, and those of its own library, which somebody may have imported before, are declared anew.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asyncgen.backends.slots.gpu.lanes import ROWS
from asyncgen.records import Sampling
from tests.backends.slots.gpu.play import Heads, Prefix, Prompt, Row, decode, prefill, reference
from tests.backends.slots.gpu.ptxas import compiled
from tests.backends.slots.gpu.stage import FixedStage
from tests.backends.slots.play import Part, alone
from tests.backends.slots.test_sameness import subject
from tests.backends.slots.tiny import VOCABULARY, random_ids

CUDA = torch.cuda.is_available()

with pytest.MonkeyPatch.context() as patch:
    if not CUDA:
        patch.setenv("TRITON_INTERPRET", "1")
    triton = pytest.importorskip("triton", reason="triton is not installed")
    kernels: Any = importlib.import_module("asyncgen.backends.slots.gpu.kernels")
    launches: Any = importlib.import_module("asyncgen.backends.slots.gpu.triton_attention")

attention: Any = launches.TritonAttention()

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, of rows that are NaN and that nobody reads
TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
OLD = tuple(int(number) for number in triton.__version__.split(".")[:2]) < (3, 7)
NO_CUDA = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
KINDS = [
    *(
        pytest.param(
            Heads(1, 1, 64, dtype, "cpu"),
            id=f"interpreted-{str(dtype)[6:]}",
            marks=[
                pytest.mark.skipif(CUDA, reason="a process compiles the kernels or interprets them"),
                pytest.mark.skipif(OLD, reason="triton's interpreter before 3.7 cannot loop with numpy from 2.4 on"),
            ],
        )
        for dtype in (torch.float32, torch.float16)
    ),
    pytest.param(
        None,
        id="interpreted-bfloat16",
        marks=pytest.mark.skip(reason="the interpreter multiplies the bits of bfloat16 as if they were integers"),
    ),
    *(
        pytest.param(Heads(1, 1, 64, dtype, "cuda"), id=f"cuda-{str(dtype)[6:]}", marks=[NO_CUDA, pytest.mark.gpu])
        for dtype in TOLERANCES
    ),
]
"""Where the kernels run, and on what numbers."""
LIBRARY = ["triton.language.standard", "triton.language"]
SHAPES = [(1, 1, 64), (7, 2, 64), (8, 1, 128)] if CUDA else None
"""Each takes seconds to compile."""
STEPS = settings(max_examples=100 if CUDA else 3, deadline=None)
PROMPTS = settings(max_examples=100 if CUDA else 3, deadline=None)
"""Interpreted, a program takes some twenty milliseconds."""

lengths = st.one_of(st.sampled_from([0, 1, 15, 16, 17, 63, 64, 65, 127, 128]), st.integers(0, 150))
prefixes = st.builds(Prefix, st.sampled_from([1, 20, 64, 100, 130]), st.integers(0, 9))
rows = st.builds(
    Row, lengths, st.integers(100, 10_000), st.none() | prefixes, st.sampled_from([True, True, True, False])
)
prompts = st.builds(Prompt, st.sampled_from([1, 15, 16, 17, 33, 63, 64, 65, 80]), st.integers(100, 10_000))
places = st.integers(0, 10_000)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, bool]:
    """Query heads of a group, key heads, their size, and whether inputs are slices of one tensor."""
    if SHAPES is not None:
        return *draw(st.sampled_from(SHAPES)), draw(st.booleans())
    size = draw(st.sampled_from([16, 20, 64, 80]))
    return draw(st.sampled_from([1, 2, 3, 7, 8])), draw(st.integers(1, 2)), size, draw(st.booleans())


def heads_of(kind: Heads, shape: tuple[int, int, int, bool]) -> Heads:
    group, kv, size, fused = shape
    return Heads(group, kv, size, kind.dtype, kind.device, fused)


def _product(_: Any, one: Any, other: Any, added: Any, *__: Any) -> Any:
    """What the interpreter calls for ``tl.dot``, without BLAS, with which a row's bits depend on its place."""
    products = one.data.astype(np.float32)[:, :, None] * other.data.astype(np.float32)
    return type(added)(products.sum(axis=1, dtype=np.float32) + added.data, added.dtype.scalar)


@pytest.fixture(scope="module", autouse=True)
def _interpreted() -> Iterator[None]:
    if CUDA:
        yield
        return
    interpreter = importlib.import_module("triton.runtime.interpreter")
    interpreted = interpreter.InterpretedFunction
    if not isinstance(kernels.prefill, interpreted):
        pytest.fail("the kernels' module was imported in this process before TRITON_INTERPRET was set")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", _product)
        patch.setattr(launches, "MOST_FLOAT32_ROWS", launches.MOST_ROWS)  # fewer programs: registers there are none
        for library in map(importlib.import_module, LIBRARY):
            for name, function in list(vars(library).items()):
                if isinstance(function, triton.runtime.JITFunction):
                    patch.setattr(library, name, interpreted(function.fn))
        yield


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_zero_by_chance() -> Iterator[None]:
    """Memory that torch hands out unset is full of NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    assert torch.empty(1, device="cuda" if CUDA else "cpu").new_empty((1,)).isnan()
    yield
    torch.use_deterministic_algorithms(before)


def assert_close(found: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCES[found.dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@given(shape=shapes(), batch=st.lists(rows, min_size=1, max_size=5), where=places)
@STEPS
def test_a_step_is_attention_over_prefix_and_own_tokens(
    kind: Heads, shape: tuple[int, int, int, bool], batch: list[Row], where: int
) -> None:
    heads = heads_of(kind, shape)
    for row, found in zip(batch, decode(attention, heads, batch, where), strict=True):
        if row.live:
            assert_close(found, reference(heads, row.seed, row.length + 1, row.prefix)[-1])
        else:
            assert not found.any()


@pytest.mark.parametrize("kind", KINDS)
@given(shape=shapes(), row=rows, batch=st.lists(rows, max_size=4), where=places, data=st.data())
@STEPS
def test_a_row_gets_the_same_bits_in_any_slot_beside_any_others(
    kind: Heads, shape: tuple[int, int, int, bool], row: Row, batch: list[Row], where: int, data: st.DataObject
) -> None:
    heads = heads_of(kind, shape)
    alone = decode(attention, heads, [row])[0]
    slot = data.draw(st.integers(0, len(batch)))
    together = decode(attention, heads, [*batch[:slot], row, *batch[slot:]], where)
    assert torch.equal(together[slot], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_full_tiles(kind: Heads) -> None:
    heads = heads_of(kind, (7, 1, 64, True))
    prefix = Prefix(70, 1)
    batch = [Row(slot, 100 + slot, prefix) for slot in range(2 * ROWS + 3)]
    for row, found in zip(batch, decode(attention, heads, batch, 5), strict=True):
        assert_close(found, reference(heads, row.seed, row.length + 1, prefix)[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_groups_that_are_computed_in_parts(kind: Heads) -> None:
    heads = heads_of(kind, (19, 2, 16, True))
    prefix = Prefix(70, 1)
    (found,) = decode(attention, heads, [Row(3, 7, prefix)])
    assert_close(found, reference(heads, 7, 4, prefix)[-1])
    (all_found,) = prefill(attention, heads, [Prompt(18, 8)], prefix)
    assert_close(all_found, reference(heads, 8, 18, prefix))


@pytest.mark.parametrize("kind", KINDS)
@given(
    shape=shapes(),
    pack=st.lists(prompts, min_size=1, max_size=3),
    prefix=st.none() | prefixes,
    where=places,
    fill=st.integers(0, 20),
)
@PROMPTS
def test_prompts_are_causal_behind_their_prefix(
    kind: Heads, shape: tuple[int, int, int, bool], pack: list[Prompt], prefix: Prefix | None, where: int, fill: int
) -> None:
    heads = heads_of(kind, shape)
    found = prefill(attention, heads, pack, prefix, places=where, fill=fill)
    for prompt, its in zip(pack, found, strict=True):
        assert_close(its, reference(heads, prompt.seed, prompt.length, prefix))


@pytest.mark.parametrize("kind", KINDS)
@given(
    shape=shapes(),
    prompt=prompts,
    before=st.lists(prompts, max_size=2),
    behind=st.lists(prompts, max_size=1),
    prefix=st.none() | prefixes,
    where=places,
    fill=st.integers(0, 20),
)
@PROMPTS
def test_a_prompt_gets_the_same_bits_wherever_it_is_packed(
    kind: Heads,
    shape: tuple[int, int, int, bool],
    prompt: Prompt,
    before: list[Prompt],
    behind: list[Prompt],
    prefix: Prefix | None,
    where: int,
    fill: int,
) -> None:
    heads = heads_of(kind, shape)
    (alone,) = prefill(attention, heads, [prompt], prefix)
    together = prefill(attention, heads, [*before, prompt, *behind], prefix, places=where, fill=fill)
    assert torch.equal(together[len(before)], alone)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", [None, Prefix(70, 1)], ids=["alone", "prefix"])
@pytest.mark.parametrize("cuts", [(64,), (50, 128), (128, 144)])
def test_a_long_prompt_in_pieces_is_the_same_prompt(kind: Heads, cuts: tuple[int, ...], prefix: Prefix | None) -> None:
    heads = heads_of(kind, (2, 1, 64, False))
    (found,) = prefill(attention, heads, [Prompt(150, 3)], prefix, cuts=cuts, fill=7)
    (whole,) = prefill(attention, heads, [Prompt(150, 3)], prefix)
    assert_close(found, whole.double())
    assert_close(found, reference(heads, 3, 150, prefix))


@NO_CUDA
@pytest.mark.gpu
def test_a_captured_step_is_the_step() -> None:
    heads = Heads(8, 2, 128, torch.bfloat16, "cuda", fused=True)
    batch = [Row(length, 100 + length, Prefix(70, 1) if length % 2 else None) for length in range(60, 70)]
    assert torch.equal(decode(_Captured(), heads, batch), decode(attention, heads, batch))
    pack = [Prompt(length, length) for length in (5, 64, 90)]
    captured = prefill(_Captured(), heads, pack, Prefix(70, 1), fill=3)
    assert all(map(torch.equal, captured, prefill(attention, heads, pack, Prefix(70, 1), fill=3)))


class _Captured:
    """Attention by a graph that was captured of it, on the same tensors full of what may not be read."""

    def decode(self, *arguments: Any) -> Tensor:
        return self._replay(attention.decode, *arguments)

    def prefill(self, *arguments: Any) -> Tensor:
        return self._replay(attention.prefill, *arguments)

    def _replay(self, function: Any, queries: Tensor, *arguments: Any) -> Tensor:
        function(queries, *arguments)
        own = queries.clone()
        queries.fill_(torch.nan)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out: Tensor = function(queries, *arguments)
        queries.copy_(own)
        graph.replay()
        return out


def test_they_compile_without_spilling_registers(tmp_path: Path) -> None:
    cases = [
        {"dtype": "bfloat16", "size": 128, "group": 8, "kv_heads": 2},
        {"dtype": "bfloat16", "size": 64, "group": 7, "kv_heads": 2},
    ]
    for case, said in compiled("attention", cases, tmp_path):
        for name, kernel in said.items():
            assert not kernel["spills"], (case, name, kernel)
            assert kernel["dots"], (case, name, "no tensor cores")
            assert kernel["shared"] <= 227 << 10, (case, name, kernel)


@pytest.mark.skipif(CUDA, reason="test_on_a_gpu does it on a device")
@pytest.mark.skipif(OLD, reason="triton's interpreter before 3.7 cannot loop with numpy from 2.4 on")
@torch.inference_mode()
def test_the_decoder_says_over_these_kernels_what_the_plain_one_says() -> None:
    """Attention and sampling together, with prefixes, a prompt in chunks, and a slot that is used again."""
    passes: Any = importlib.import_module("asyncgen.backends.sampling_triton").TritonPasses(2, VOCABULARY)
    stage = FixedStage(*subject("groups of seven"), 2, width=64, attention=attention, passes=passes)
    parts = [
        Part(0, random_ids(66, 1), 4, random_ids(70, 9), Sampling(0.9)),
        Part(1, random_ids(9, 2), 2, random_ids(5, 8), Sampling(1.1, top_p=0.9)),
        Part(2, random_ids(3, 3), 3, random_ids(70, 9), Sampling(0.0)),
    ]
    for part in parts:
        while not stage.fits([part]):
            stage.step()
        stage.admit([part])
    stage.finish()
    for part in parts:
        assert stage.said[part.index] == alone(*subject("groups of seven"), part).tokens
