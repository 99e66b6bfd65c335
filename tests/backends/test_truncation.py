"""What the filters keep: against a float64 reference, against transformers, and with ties."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from asyncgen.backends.sampling import Needs, Sampler, SamplingParameters
from asyncgen.backends.truncation import largest, nucleus_logit
from asyncgen.records import Sampling
from tests.backends.exact import CPU, kept_tokens, pick

VOCABULARIES = (5, 127, 128, 129, 700, 4096)
FILTERS = (
    Sampling(1.0, top_k=1),
    Sampling(0.7, top_k=40),
    Sampling(1.3, top_k=5000),
    Sampling(0.8, top_p=0.9),
    Sampling(2.0, top_p=0.99),
    Sampling(1.0, top_p=1e-9),
    Sampling(1.0, top_p=0.999),
    Sampling(1.0, min_p=0.05),
    Sampling(3.0, min_p=1.0),
    Sampling(0.9, top_k=50, top_p=0.9, min_p=0.02),
    Sampling(5.0, top_k=300, top_p=0.95),
)


def noisy_logits(rows: int, vocabulary: int, *, spread: float = 3.0, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def kept(logits: Tensor, sampling: Sampling) -> Tensor:
    """bool [B, V]: the tokens that have mass left when a batch of such rows is drawn, looking at every token."""
    rows, vocabulary = logits.shape
    found = []
    for row in range(rows):  # one by one: settling draws a part of the rows
        sampler = Sampler(1, vocabulary, CPU)
        pick(logits[row : row + 1], [sampling], [row], sampler=sampler)
        found.append(sampler.buffers["work"][0, :vocabulary] > 0)
    return torch.stack(found)


def kept_of(shares: list[float], **options: float) -> set[int]:
    logits = torch.tensor([[math.log(share) for share in shares]])
    return set(kept(logits, Sampling(**({"temperature": 1.0} | options))).nonzero()[:, 1].tolist())  # type: ignore[arg-type]  # floats that are whole


@given(
    st.integers(1, 4),
    st.integers(1, 6000),
    st.integers(1, 6000),
    st.sampled_from((torch.float32, torch.bfloat16)),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_largest_equals_a_sort(rows: int, vocabulary: int, k: int, dtype: torch.dtype, seed: int) -> None:
    values = noisy_logits(rows, vocabulary, seed=seed).to(dtype)
    values[:, ::3] = values[:, :1].clone()  # ties, and among them maxima of many groups
    values[0, :: 1 + seed % 2] = -torch.inf
    assert torch.equal(largest(values, min(k, vocabulary)), values.sort(descending=True).values[:, :k])


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("sampling", FILTERS, ids=str)
def test_filters_keep_what_a_float64_reference_keeps(vocabulary: int, sampling: Sampling) -> None:
    for spread in (3.0, 0.1):
        logits = noisy_logits(4, vocabulary, spread=spread)
        expected = torch.stack([kept_tokens(row.double(), sampling) for row in logits])
        assert torch.equal(kept(logits, sampling), expected)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("sampling", FILTERS, ids=str)
def test_filters_keep_what_transformers_keeps(vocabulary: int, sampling: Sampling) -> None:
    logits = noisy_logits(3, vocabulary, seed=1)
    ids: Any = torch.zeros(3, 1, dtype=torch.int64)
    scores = TemperatureLogitsWarper(sampling.temperature)(ids, logits.double())
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(ids, scores)
    if sampling.min_p:
        scores = MinPLogitsWarper(sampling.min_p)(ids, scores)
    assert torch.equal(kept(logits, sampling), scores > -torch.inf)


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 7.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_penalties_are_those_of_transformers(penalty: float, dtype: torch.dtype) -> None:
    logits = noisy_logits(5, 300).to(dtype)
    logits[:, 7] = -torch.inf
    ids = torch.randint(0, 300, (5, 40), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(5, 300, dtype=torch.bool).scatter_(1, ids, True)
    sampler = Sampler(5, 300, CPU)
    needs = Needs(sampled=True, penalty=True)
    pick(logits, [Sampling(1.0, repetition_penalty=penalty)] * 5, range(5), seen=seen, sampler=sampler, needs=needs)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.float())
    assert torch.equal(sampler.buffers["penalised"][:, :300], expected)


def test_filters_keep_what_they_say() -> None:
    shares = [0.4, 0.3, 0.2, 0.1]
    assert kept_of(shares) == {0, 1, 2, 3}
    assert kept_of(shares, top_k=2) == {0, 1}
    assert kept_of(shares, top_k=9) == {0, 1, 2, 3}
    assert kept_of(shares, top_p=0.69) == {0, 1}
    assert kept_of(shares, top_p=0.71) == {0, 1, 2}
    assert kept_of(shares, top_p=1e-9) == {0}
    assert kept_of(shares, min_p=0.45) == {0, 1, 2}
    assert kept_of(shares, min_p=1.0) == {0}
    assert kept_of(shares, top_k=2, top_p=0.5) == {0}, "top-p looks at what top-k left: 4/7 and 3/7"
    assert kept_of(shares, temperature=50.0, top_p=0.4) == {0, 1}, "the temperature comes first"


def test_of_equals_at_the_edge_all_are_kept() -> None:
    shares = [0.1, 0.25, 0.25, 0.25, 0.15]
    assert kept_of(shares, top_k=1) == {1, 2, 3}
    assert kept_of(shares, top_p=0.5) == {1, 2, 3}
    assert kept_of(shares, min_p=1.0) == {1, 2, 3}
    assert kept_of([1 / 900] * 900, top_k=7, top_p=0.3) == set(range(900)), "more of them than candidates"


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=300), st.floats(0.001, 0.999))
@settings(deadline=None, max_examples=60)
def test_bisection_ends_at_the_largest_logit_that_reaches_the_mass(row: list[float], top_p: float) -> None:
    logits = torch.tensor([row], dtype=torch.float32)
    shares = (logits - logits.amax()).double().exp()
    wanted = shares.sum(-1) * top_p

    def mass_at(edge: Tensor) -> Tensor:
        return (shares * (logits >= edge[:, None])).sum(-1)

    found = nucleus_logit(logits.amax(-1), wanted, mass_at)
    assert found.item() == max(logit for logit in row if mass_at(torch.tensor([logit])) >= wanted)


def test_the_few_candidates_and_every_token_agree() -> None:
    for spread in (0.2, 1.0, 3.0):
        logits = noisy_logits(64, 1000, spread=spread)
        samplings = [Sampling(0.9, top_p=0.3 + 0.01 * row) for row in range(64)]
        sampler = Sampler(64, 1000, CPU)
        zeros, parameters, needs = (
            torch.zeros(64, dtype=torch.int64),
            SamplingParameters.of(samplings, CPU),
            Needs.of(samplings),
        )
        few = sampler.draw(logits, zeros, zeros, parameters, needs)
        masses_few = sampler.buffers["work"].clone()
        every = sampler.draw(logits, zeros, zeros, parameters, needs, every_token=True)
        assert not every.unsettled.any()
        settled = ~few.unsettled
        assert settled.any() == (spread > 0.2)
        assert torch.equal(masses_few[settled], sampler.buffers["work"][settled])
        assert torch.equal(few.tokens[settled], every.tokens[settled])
