"""Packed products: the plain ones but for rounding, and the same bits whatever the number of rows and of threads."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from asyncgen.backends.slots import packed
from asyncgen.backends.slots.packed import Packing
from asyncgen.backends.slots.probe import Unsupported, probe
from tests.backends.slots.tiny import LLAMA, make

pytestmark = pytest.mark.skipif(
    platform.machine() not in {"x86_64", "AMD64"}, reason="weights are packed for x86 processors only"
)

SIZES = st.integers(1, 96)


def test_this_torch_has_them() -> None:
    assert packed._works(), "torch's operators have changed: nothing is packed any more"


def test_trying_them_leaves_the_applications_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    packed._works.__wrapped__()
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@given(
    inner=SIZES,
    outer=SIZES,
    rows=st.integers(1, 80),
    bias=st.booleans(),
    strided=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_it_is_the_same_product(inner: int, outer: int, rows: int, bias: bool, strided: bool, seed: int) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(inner, outer, bias=bias)
    given_rows = torch.randn(2, rows, inner)
    if strided:  # as views of something greater are
        linear.weight = nn.Parameter(torch.randn(inner, outer).T)
        given_rows = torch.randn(2, rows, 3 * inner)[..., ::3]
        if bias:
            linear.bias = nn.Parameter(torch.randn(outer, 2)[:, 1])
    packing = Packing(linear)
    with torch.inference_mode():
        plain = linear(given_rows)
        packing.on()
        found = linear(given_rows)
        packing.off()
        again = linear(given_rows)
    exact = nn.functional.linear(given_rows.double(), linear.weight.double(), linear.bias.double() if bias else None)
    assert found.shape == plain.shape
    assert (found - exact).abs().max() <= 1e-5 * max(1.0, float(exact.detach().abs().max()))
    assert torch.equal(again, plain)


@given(
    inner=st.sampled_from((32, 36, 37, 256, 768)),
    outer=st.sampled_from((16, 33, 128, 256, 680)),
    cut=st.integers(1, 300),
    start=st.integers(0, 40),
    threads=st.integers(1, 4),
)
@settings(deadline=None, max_examples=60)
def test_bits_of_a_row_depend_on_nothing_else(inner: int, outer: int, cut: int, start: int, threads: int) -> None:
    torch.manual_seed(inner + outer)
    linear = nn.Linear(inner, outer)
    Packing(linear).on()
    rows = torch.randn(400, inner)
    with torch.inference_mode():
        torch.set_num_threads(1)
        whole = linear(rows)
        torch.set_num_threads(threads)
        part = linear(rows[start : start + cut])
    assert torch.equal(part.view(torch.int32), whole[start : start + cut].view(torch.int32))


def test_no_rows_at_all() -> None:
    linear = nn.Linear(8, 5)
    Packing(linear).on()
    with torch.inference_mode():
        assert linear(input=torch.empty(0, 8)).shape == (0, 5)


def test_only_plain_layers_of_float32_are_packed() -> None:
    class Own(nn.Linear):
        """Whatever it does, it is not for us to say."""

    hooked = nn.Linear(8, 8)
    vars(hooked)["forward"] = lambda rows: rows
    model = nn.Sequential(nn.Linear(8, 8), Own(8, 8), nn.Linear(8, 8, dtype=torch.bfloat16), hooked)
    assert list(Packing(model).layers) == [model[0]]


def test_nor_are_models_too_large_for_a_second_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SHARE", 0.0)
    assert not Packing(nn.Linear(8, 8)).layers


def test_the_engine_computes_with_them_and_a_refused_model_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = make("LlamaConfig", **LLAMA)
    layer = loaded.model.model.layers[0].mlp.up_proj
    attention = loaded.model.config._attn_implementation
    monkeypatch.setattr("asyncgen.backends.slots.probe.check_same", _refuse)
    with pytest.raises(Unsupported, match="of no use"):
        probe(loaded, 128)
    assert "forward" not in vars(layer)
    assert loaded.model.config._attn_implementation == attention
    monkeypatch.undo()
    probe(loaded, 128)
    assert "forward" in vars(layer)


def _refuse(*_: object) -> None:
    raise Unsupported("of no use")
