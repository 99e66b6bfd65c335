"""The kernels against torch on the CPU: run by triton's interpreter, or by a CUDA device where there is one.

The interpreter is numpy: it knows no bfloat16, and says nothing of what the compiler makes of a kernel, which
``test_kernels_compile`` looks at.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asyncgen.backends.noise import _bits, gumbel, token_keys
from asyncgen.backends.sampling import Needs, Picked, Sampler, SamplingParameters
from asyncgen.backends.sampling_passes import BLOCK, BLOCK_IDS, TorchPasses
from asyncgen.backends.truncation import nucleus_logit
from asyncgen.records import Sampling
from tests.backends.exact import CPU, kept_tokens, pick

pytest.importorskip("triton", reason="there is no triton here, and no kernel")

import triton
import triton.language as tl

from asyncgen.backends import sampling_kernels as kernels
from asyncgen.backends.sampling_triton import TritonPasses

INTERPRETED = not isinstance(kernels.survey, triton.runtime.JITFunction)
DEVICE = CPU if INTERPRETED else torch.device("cuda")
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)

pytestmark = [
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="no CUDA, nor triton's interpreter"),
    # What a broken row's arithmetic meets is nothing to numpy's liking, and to nobody's harm.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from((0.0, 0.3, 0.8, 1.0, 2.0)),
    top_k=st.sampled_from((0, 0, 0, 1, 5, 90, 1000)),
    top_p=st.sampled_from((1.0, 1.0, 0.01, 0.5, 0.95, 0.999)),
    min_p=st.sampled_from((0.0, 0.0, 0.02, 0.5)),
    repetition_penalty=st.sampled_from((1.0, 1.0, 1.0, 1.1, 0.8)),
    logprobs=st.booleans(),
)
FEW, MORE = (settings(deadline=None, max_examples=count) for count in (5, 8))
"""The interpreter takes some 20 ms for a program, and as long for each halving of a nucleus."""
CLOSE = 2e-5
"""How far masses in steps of 2**-23 may be from exact ones, relatively; and scores in float32, absolutely."""


@triton.jit
def noise_of(
    seed: tl.tensor,
    position: tl.tensor,
    bits: tl.tensor,
    noise: tl.tensor,
    count: tl.tensor,
    BASE: tl.constexpr,
    SIZE: tl.constexpr,
) -> None:
    ids = tl.arange(0, SIZE)
    hashed = kernels._row_hash(tl.load(seed), tl.load(position))
    keys = ids.to(tl.int64) + BASE
    tl.store(bits + ids, kernels._bits(hashed, keys), mask=ids < count)
    tl.store(noise + ids, kernels._gumbel(hashed, keys), mask=ids < count)


def drawn(
    logits: Tensor,
    samplings: Sequence[Sampling],
    seeds: Sequence[int],
    positions: Sequence[int],
    seen: Tensor,
    needs: Needs | None = None,
) -> Picked:
    """What the kernels pick, on the CPU."""
    sampler = Sampler(len(logits), logits.shape[1], DEVICE, TritonPasses(len(logits), logits.shape[1]))
    arguments = (
        logits.to(DEVICE),
        torch.tensor(seeds, device=DEVICE),
        torch.tensor(positions, device=DEVICE),
        SamplingParameters.of(samplings, DEVICE),
        needs or Needs.of(samplings),
        seen.to(DEVICE),
    )
    picked = sampler.draw(*arguments)
    assert sampler.settle(picked, *arguments) is picked
    logprobs = None if picked.logprobs is None else picked.logprobs.cpu()
    return Picked(picked.tokens.cpu(), picked.broken.cpu(), picked.unsettled.cpu(), logprobs)


def noisy_logits(rows: int, vocabulary: int, seed: int, spread: float = 3.0) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def within_rounding(logits: Tensor, sampling: Sampling, seed: int, position: int, seen: Tensor) -> set[int]:
    """The tokens that one row may pick if no comparison is held to more than ``CLOSE``: in float64, and slowly."""
    exact = logits.to(torch.float64)
    penalty = sampling.repetition_penalty
    exact = torch.where(seen, torch.where(exact > 0, exact / penalty, exact * penalty), exact)
    if sampling.temperature == 0:
        return {int(token) for token in (exact >= exact.max() - 1e-6 * exact.max().abs()).nonzero()}
    scores = torch.nn.functional.pad(
        (exact - exact.max()) / sampling.temperature, (0, -len(exact) % BLOCK), value=-torch.inf
    )
    one, place = torch.tensor([seed]), torch.tensor([position])
    possible: set[int] = set()
    for more, least in product((1 - CLOSE, 1.0, 1 + CLOSE), repeat=2):
        varied = replace(sampling, top_p=min(1.0, sampling.top_p * more), min_p=min(1.0, sampling.min_p * least))
        kept = torch.nn.functional.pad(kept_tokens(exact, varied), (0, len(scores) - len(exact)))
        left = scores.masked_fill(~kept, -torch.inf).view(-1, BLOCK)
        blocks = left.logsumexp(-1) + gumbel(one, place, token_keys(len(left), CPU, BLOCK_IDS))[0]
        for block in (blocks >= blocks.max() - CLOSE).nonzero()[:, 0].tolist():
            noisy = left[block] + gumbel(one, place, token_keys(BLOCK, CPU, block * BLOCK))[0]
            possible |= {block * BLOCK + int(at) for at in (noisy >= noisy.max() - CLOSE).nonzero()}
    return possible


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**31), st.sampled_from((0, 1000, BLOCK_IDS)))
@MORE
def test_hash_is_the_same_to_the_bit_and_noise_nearly(seed: int, position: int, base: int) -> None:
    seeds, positions = torch.tensor([seed]), torch.tensor([position])
    bits = torch.zeros(50, dtype=torch.int64, device=DEVICE)
    noise = torch.zeros(50, dtype=torch.float64, device=DEVICE)
    noise_of[(1,)](seeds.to(DEVICE), positions.to(DEVICE), bits, noise, 50, BASE=base, SIZE=64)
    keys = token_keys(50, CPU, base)
    assert torch.equal(bits.cpu(), _bits(seeds, positions, keys)[0])
    assert torch.allclose(noise.cpu(), gumbel(seeds, positions, keys)[0], rtol=1e-13, atol=1e-14)


@given(st.integers(1, 3), st.integers(1, 5000), st.sampled_from(DTYPES), st.floats(0.05, 5), st.integers(0, 99))
@FEW
def test_maxima_are_torchs_and_masses_nearly(
    rows: int, vocabulary: int, dtype: torch.dtype, temperature: float, seed: int
) -> None:
    logits = noisy_logits(rows, vocabulary, seed).to(dtype)
    logits[0, : min(200, vocabulary - 1)] = -torch.inf
    logits[-1, -1] = 60.0
    temperatures = torch.full((rows,), temperature)
    expected = TorchPasses(rows, vocabulary, CPU)
    passes = TritonPasses(rows, vocabulary)
    survey, found = expected.survey(logits, temperatures), passes.survey(logits.to(DEVICE), temperatures.to(DEVICE))
    assert torch.equal(found.maxima.cpu(), survey.maxima)
    assert torch.equal(found.best.cpu(), survey.best)
    edge = survey.best - torch.rand(rows, generator=torch.Generator().manual_seed(seed)) * 3
    for _ in range(2):
        assert survey.masses is not None
        assert found.masses is not None
        unit = ((survey.maxima - survey.best[:, None]) / temperature).exp().nan_to_num()
        assert torch.allclose(found.masses.cpu() * unit, survey.masses, rtol=CLOSE, atol=1e-30)
        assert torch.allclose(passes.totals(found).cpu(), expected.totals(survey), rtol=CLOSE)
        survey, found = expected.above(survey, edge), passes.above(found, edge.to(DEVICE))


def test_rows_may_lie_apart() -> None:
    everything = noisy_logits(6, 700, 3).to(DEVICE)
    for logits in (everything[1::2, :450], everything[:3, 7:300], everything[:1, :300].expand(3, -1)):
        found = TritonPasses(3, logits.shape[1]).survey(logits, None)
        assert torch.equal(found.maxima.cpu(), TorchPasses(3, logits.shape[1], CPU).survey(logits.cpu(), None).maxima)


@given(st.data(), st.integers(1, 5), st.integers(1, 2000), st.sampled_from(DTYPES))
@MORE
def test_the_same_tokens_are_picked_as_by_torch(
    data: st.DataObject, rows: int, vocabulary: int, dtype: torch.dtype
) -> None:
    samplings = data.draw(st.lists(SAMPLINGS, min_size=rows, max_size=rows))
    start = data.draw(st.integers(0, 10**6))
    logits = noisy_logits(rows, vocabulary, start, data.draw(st.sampled_from((0.1, 1.0, 4.0)))).to(dtype)
    seen = noisy_logits(rows, vocabulary, start + 1) > 2
    seeds, positions = [start * 2**40 + row for row in range(rows)], [7 * row for row in range(rows)]
    expected = pick(logits, samplings, seeds, positions, seen=seen)
    found = drawn(logits, samplings, seeds, positions, seen)
    assert not found.broken.any()
    assert not found.unsettled.any()
    same = found.tokens == expected.tokens
    for row in (~same).nonzero()[:, 0].tolist():
        possible = within_rounding(logits[row], samplings[row], seeds[row], positions[row], seen[row])
        assert {int(found.tokens[row]), int(expected.tokens[row])} <= possible
    if expected.logprobs is not None:
        assert found.logprobs is not None
        assert torch.allclose(found.logprobs[same], expected.logprobs[same], rtol=CLOSE, atol=CLOSE)


def test_the_slow_reference_knows_what_torch_picks() -> None:
    """Otherwise it would excuse anything."""
    samplings = [Sampling(0.8, top_p=0.9, repetition_penalty=1.2), Sampling(1.3, top_k=40, min_p=0.02), Sampling(0.0)]
    logits, seen = noisy_logits(3, 900, 5), noisy_logits(3, 900, 6) > 1
    for seed in range(30):
        tokens = pick(logits, samplings, [seed] * 3, seen=seen).tokens.tolist()
        for row, sampling in enumerate(samplings):
            assert within_rounding(logits[row], sampling, seed, 0, seen[row]) == {tokens[row]}


@given(
    st.lists(st.floats(-50, 50, width=16), min_size=1, max_size=300),
    st.floats(0.001, 0.999),
    st.sampled_from((0.3, 1.0, 20.0)),
    st.sampled_from(DTYPES),
)
@FEW
def test_nucleus_ends_where_bisection_over_all_float32_does(
    row: list[float], top_p: float, temperature: float, dtype: torch.dtype
) -> None:
    kinds = (row, [0.0] * len(row), [float(int(logit) // 10) for logit in row])  # as they are, flat, with many ties
    logits = torch.tensor(kinds).to(dtype)
    rows = len(kinds)
    exact = logits.to(torch.float32)
    shares = ((exact - exact.amax(-1, keepdim=True)).double() / temperature).exp()
    wanted = shares.sum(-1) * top_p

    def mass_at(edge: Tensor) -> Tensor:
        return (shares * (exact >= edge[:, None])).sum(-1)

    passes = TritonPasses(rows, len(row))
    survey = passes.survey(logits.to(DEVICE), torch.full((rows,), temperature, device=DEVICE))
    none, chance = torch.full_like(survey.best, -torch.inf), torch.full_like(survey.best, top_p, dtype=torch.float64)
    every = torch.ones_like(none, dtype=torch.bool)
    found = passes.nucleus(survey, none, passes.totals(survey), chance, survey.best, every).cpu()
    expected = nucleus_logit(exact.amax(-1), wanted, mass_at)
    assert (exact == found[:, None]).any(-1).all()
    lower, higher = torch.minimum(found, expected), torch.maximum(found, expected)
    differ = (
        lower != higher
    )  # within rounding: the logits between them weigh nothing, or the mass is just what is wanted
    next_above = torch.where(exact > lower[:, None], exact, torch.inf).amin(-1)
    assert ((mass_at(next_above) / wanted - 1).abs() < CLOSE)[differ].all()
    assert (higher == next_above)[differ].all() or ((mass_at(higher) / wanted - 1).abs() < CLOSE)[differ].all()
    assert torch.equal(passes.nucleus(survey, none, passes.totals(survey), chance, none, ~every), none)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_remains_unsettled_in_flat_logits(dtype: torch.dtype) -> None:
    logits = noisy_logits(3, 1500, 1, 0.05).to(dtype)
    kinds = [Sampling(1.0, top_p=0.3 + 0.3 * row, top_k=1400 * (row % 2)) for row in range(3)]
    needs, zeros = Needs.of(kinds), torch.zeros(3, dtype=torch.int64)
    torchs = Sampler(3, 1500, CPU).draw(logits, zeros, zeros, SamplingParameters.of(kinds, CPU), needs)
    assert torchs.unsettled.all()
    seen = torch.zeros(3, 1500, dtype=torch.bool)
    found = drawn(logits, kinds, [9] * 3, range(3), seen)
    assert not found.unsettled.any()
    expected = pick(logits, kinds, [9] * 3, range(3), seen=seen)
    for row in (found.tokens != expected.tokens).nonzero()[:, 0].tolist():
        possible = within_rounding(logits[row], kinds[row], 9, row, seen[row])
        assert {int(found.tokens[row]), int(expected.tokens[row])} <= possible


@pytest.mark.parametrize("bad", [[torch.nan], [torch.inf], [torch.nan, torch.inf, -torch.inf], None], ids=str)
@pytest.mark.parametrize("vocabulary", [5, 300])
def test_a_broken_row_is_told_and_harms_no_neighbour(bad: list[float] | None, vocabulary: int) -> None:
    kinds = [Sampling(0.0), Sampling(1.0), Sampling(0.9, top_p=0.8, logprobs=True), Sampling(1.0, top_k=3, min_p=0.1)]
    kinds.append(Sampling(1.2, repetition_penalty=1.3))
    rows = 2 * len(kinds)  # each kind twice, first ill and then well
    kinds, ill = [kind for kind in kinds for _ in range(2)], torch.arange(rows) % 2 == 0
    well, seen = noisy_logits(rows, vocabulary, 2), torch.zeros(rows, vocabulary, dtype=torch.bool)
    sick = well.clone()
    if bad is None:
        sick[ill] = -torch.inf
    else:
        sick[ill, vocabulary - 1 - len(bad) : vocabulary - 1] = torch.tensor(bad)
    expected = drawn(well, kinds, range(rows), [0] * rows, seen)
    found = drawn(sick, kinds, range(rows), [0] * rows, seen)
    assert torch.equal(found.broken, ill)
    assert not found.tokens[ill].any()
    assert torch.equal(found.tokens[~ill], expected.tokens[~ill])
    assert found.logprobs is not None
    assert expected.logprobs is not None
    assert torch.equal(found.logprobs[~ill], expected.logprobs[~ill])


def test_temperature_0_takes_the_first_of_the_likeliest() -> None:
    logits = noisy_logits(4, 400, 1).round(decimals=1)
    logits[:, 399] = logits[:, 390] = logits[:, 5] = 19.0
    logits[0, :] = -3e38
    logits[1, :2], logits[1, 2:] = torch.tensor([1.0, 1.0 + 2**-23]), -1e6
    seen = torch.zeros(4, 400, dtype=torch.bool)
    assert drawn(logits, [Sampling(0.0)] * 4, range(4), range(4), seen).tokens.tolist() == [0, 1, 5, 5]
    tokens = drawn(logits, [Sampling(1e-300)] * 4, range(4), range(4), seen).tokens.tolist()
    assert tokens[1] == 1
    assert set(tokens[2:]) <= {5, 390, 399}


def test_no_extreme_overflows() -> None:
    hot, seen = [Sampling(1e30, top_k=3, top_p=0.9, min_p=0.5)] * 16, torch.zeros(16, 3, dtype=torch.bool)
    for row, tokens in (([3e38, -3e38, 0.0], {0}), ([90.0, -90.0, 0.0], {0, 1, 2})):
        many = torch.tensor([row]).repeat(16, 1)
        assert set(drawn(many, hot, range(16), [0] * 16, seen).tokens.tolist()) == tokens


def to_the_bit(picked: Picked, row: int) -> tuple[Any, ...]:
    assert picked.logprobs is not None
    return int(picked.tokens[row]), bool(picked.broken[row]), int(picked.logprobs.view(torch.int32)[row])


@given(st.data(), st.integers(2, 3), st.sampled_from((3, 128, 257, 1500)), st.sampled_from(DTYPES))
@FEW
def test_a_row_is_the_same_to_the_bit_alone_and_anywhere(
    data: st.DataObject, rows: int, vocabulary: int, dtype: torch.dtype
) -> None:
    samplings = [replace(one, logprobs=True) for one in data.draw(st.lists(SAMPLINGS, min_size=rows, max_size=rows))]
    start = data.draw(st.integers(0, 10**6))
    logits = noisy_logits(rows, vocabulary, start).to(dtype)
    logits[rows // 2, vocabulary // 2] = data.draw(st.sampled_from((0.0, -torch.inf, torch.nan, torch.inf)))
    seen = noisy_logits(rows, vocabulary, start + 1) > 3
    together = drawn(logits, samplings, range(rows), range(rows), seen)
    for row in range(rows):
        one = slice(row, row + 1)
        alone = drawn(logits[one], samplings[one], [row], [row], seen[one])
        assert to_the_bit(alone, 0) == to_the_bit(together, row)


@given(st.integers(1, 3000), st.integers(0, 99))
@FEW
def test_masses_are_the_same_to_the_bit_in_any_layout(vocabulary: int, seed: int) -> None:
    """A neighbour's penalty turns all rows into float32, elsewhere in memory."""
    logits = noisy_logits(3, vocabulary, seed).to(DTYPES[-1])
    wide = torch.zeros(3, vocabulary + 5)
    wide[:, 5:] = logits
    temperatures = torch.full((3,), 0.7, device=DEVICE)
    passes = TritonPasses(3, vocabulary)
    found = []
    for each in (logits.to(DEVICE), logits.float().to(DEVICE), wide.to(DEVICE)[:, 5:]):
        survey = passes.survey(each, temperatures)
        above = passes.above(survey, survey.best - 3)
        assert survey.masses is not None
        assert above.masses is not None
        found.append((survey.masses.cpu(), above.masses.cpu(), passes.totals(above).cpu()))
    for other in found[1:]:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found[0], other, strict=True))


def test_passes_are_tritons_on_a_gpu_alone() -> None:
    assert isinstance(Sampler(1, 9, CPU)._passes, TorchPasses)
    if not INTERPRETED:
        assert isinstance(Sampler(1, 9, DEVICE)._passes, TritonPasses)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="nothing but a CUDA device has graphs to capture")
def test_a_draw_can_be_captured_and_replayed() -> None:
    rows, vocabulary = 16, 40_000
    kinds = [Sampling(1.0, top_p=0.9 + 0.006 * row, top_k=7 * row, min_p=0.001, logprobs=True) for row in range(rows)]
    logits = noisy_logits(rows, vocabulary, 1).to(DEVICE, torch.bfloat16)
    parameters, needs, sampler = (
        SamplingParameters.of(kinds, DEVICE),
        Needs.of(kinds),
        Sampler(rows, vocabulary, DEVICE),
    )
    seeds, positions = torch.arange(rows, device=DEVICE), torch.zeros(rows, dtype=torch.int64, device=DEVICE)
    expected = sampler.draw(logits, seeds, positions, parameters, needs).tokens.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sampler.draw(logits, seeds, positions, parameters, needs)
    for _ in range(2):
        graph.replay()
        assert torch.equal(captured.tokens, expected)
    positions += 1
    graph.replay()
    assert torch.equal(captured.tokens, sampler.draw(logits, seeds, positions, parameters, needs).tokens)


def test_kernels_compile_for_a_gpu_without_spilling(tmp_path: Path) -> None:
    """What triton's own ptxas says; no device is needed."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    kinds = ["*bf16", "*fp32"] if os.environ.get("ASYNCGEN_FAULTS") == "full" else ["*bf16"]
    program = [sys.executable, "-m", "tests.backends.compile_kernels", *kinds]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kernels_made = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kernels_made) == 1 + 7 * len(kinds)
    for made in kernels_made:
        assert made["spilled"] == 0, made
        assert made["registers"] <= 200, made
        if made["kernel"] in {"survey", "nucleus"}:
            assert "ld.global.v4.b32" in made["loads"], "logits are read 16 bytes at a time"
