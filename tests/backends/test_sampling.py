"""The per-record sampler: its distribution, and that a row's pick depends on nothing but the row.

Seeds are fixed, so what these tests find is the same in each run. ALPHA is how unlikely counts must be, if the sampler
is right, for a test to call it wrong; enough is drawn that small faults (one token too many, a wrong denominator, a
block left out) make them far less likely than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asyncgen.backends.sampling import Needs, Sampler, SamplingParameters
from asyncgen.records import Sampling
from tests.backends.exact import CPU, pick, probabilities, unlikeliness

ALPHA = 1e-6
KINDS = (
    Sampling(1.0),
    Sampling(0.6),
    Sampling(2.5),
    Sampling(1.0, top_k=7),
    Sampling(1.2, top_p=0.8),
    Sampling(1.0, min_p=0.1),
    Sampling(1.0, repetition_penalty=1.5),
    Sampling(0.9, repetition_penalty=0.7),
    Sampling(1.5, top_k=12, top_p=0.9),
    Sampling(0.8, top_p=0.95, min_p=0.05, repetition_penalty=1.2),
    Sampling(1.4, top_k=30, top_p=0.85, min_p=0.04, repetition_penalty=1.3),
)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from((0.0, 0.3, 0.8, 1.0, 2.0)),
    top_k=st.sampled_from((0, 0, 1, 5, 90, 1000)),
    top_p=st.sampled_from((1.0, 1.0, 0.5, 0.95, 0.999)),
    min_p=st.sampled_from((0.0, 0.0, 0.02, 0.5)),
    repetition_penalty=st.sampled_from((1.0, 1.0, 1.1, 0.8)),
    logprobs=st.booleans(),
)


def some_logits(vocabulary: int, *, spread: float = 1.5, seed: int = 0) -> Tensor:
    """One row, with likely tokens among the last ones: what a lost block would lose."""
    row = torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed)) * spread
    row[-1] = row.max() - 0.5
    return row


def count_picks(row: Tensor, sampling: Sampling, draws: int, *, seen: Tensor | None = None, rows: int = 1000) -> Tensor:
    """How often each token is picked from the same logits: int64 [V]."""
    counts = torch.zeros(len(row), dtype=torch.int64)
    sampler = Sampler(rows, len(row), CPU)
    for first in range(0, draws, rows):
        seeds = torch.arange(first, first + rows)
        marks = None if seen is None else seen.expand(rows, -1)
        picked = pick(row.expand(rows, -1), [sampling] * rows, seeds, seeds % 7, seen=marks, sampler=sampler)
        counts += picked.tokens.bincount(minlength=len(row))
    return counts


@pytest.mark.parametrize("vocabulary", [5, 128, 300])
@pytest.mark.parametrize("sampling", KINDS, ids=str)
def test_picks_follow_the_exact_distribution(vocabulary: int, sampling: Sampling) -> None:
    row = some_logits(vocabulary)
    seen = torch.arange(vocabulary) % 3 == 0
    expected = probabilities(row, sampling, seen)
    counts = count_picks(row, sampling, 60_000, seen=seen, rows=4000)
    assert unlikeliness(counts, expected) > ALPHA


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(1.0, top_k=50), Sampling(1.0, top_p=0.9)], ids=str)
def test_picks_from_a_larger_vocabulary(sampling: Sampling) -> None:
    row = some_logits(4096, spread=2.0)
    counts = count_picks(row, sampling, 40_000, rows=500)
    assert unlikeliness(counts, probabilities(row, sampling)) > ALPHA


def test_picks_from_a_vocabulary_of_today() -> None:
    row = some_logits(151_936, spread=2.6)
    for sampling in (Sampling(0.7), Sampling(0.8, top_k=20), Sampling(0.8, top_p=0.5)):
        counts = count_picks(row, sampling, 1200, rows=50)
        assert unlikeliness(counts, probabilities(row, sampling)) > ALPHA


def test_picks_from_flat_logits_reach_beyond_the_candidates() -> None:
    row = some_logits(1000, spread=0.2)
    sampling = Sampling(1.0, top_p=0.99)
    parameters, needs = SamplingParameters.of([sampling], CPU), Needs.of([sampling])
    zero = torch.zeros(1, dtype=torch.int64)
    assert Sampler(1, 1000, CPU).draw(row[None], zero, zero, parameters, needs).unsettled.all()
    counts = count_picks(row, sampling, 200_000)
    assert unlikeliness(counts, probabilities(row, sampling)) > ALPHA
    assert 900 < int((counts > 0).sum()) < 1000


def test_rows_of_one_batch_follow_their_own_parameters() -> None:
    rows, vocabulary = 50 * len(KINDS), 200
    kinds = torch.arange(rows) % len(KINDS)
    own = torch.stack([some_logits(vocabulary, seed=kind) for kind in range(len(KINDS))])
    seen = (torch.arange(vocabulary) % 4 == 0).expand(rows, -1)
    counts = torch.zeros(len(KINDS), vocabulary, dtype=torch.int64)
    sampler = Sampler(rows, vocabulary, CPU)
    for position in range(400):
        places = torch.full((rows,), position)
        samplings = [KINDS[kind] for kind in kinds.tolist()]
        picked = pick(own[kinds], samplings, torch.arange(rows) * 7, places, seen=seen, sampler=sampler)
        counts.index_put_((kinds, picked.tokens), torch.ones_like(kinds), accumulate=True)
    for kind, sampling in enumerate(KINDS):
        assert unlikeliness(counts[kind], probabilities(own[kind], sampling, seen[0])) > ALPHA, sampling


@pytest.mark.parametrize("vocabulary", [4, 600])
def test_neighbouring_seeds_and_positions_are_independent(vocabulary: int) -> None:
    """Pairs of picks in four classes of equal probability: 4 x 4 equally likely pairs."""
    count = 20_000
    logits = torch.zeros(count, vocabulary)
    numbers, same = torch.arange(count), [Sampling(1.0)] * count
    streams = [(numbers, torch.zeros_like(numbers)), (numbers, torch.ones_like(numbers)), (numbers + 1, numbers * 0)]
    streams += [(torch.full_like(numbers, 9), numbers), (torch.full_like(numbers, 9), numbers + 1)]
    streams += [(numbers << 40, numbers * 0)]
    classes = [
        torch.cat(
            [pick(logits[:2000], same[:2000], s[i : i + 2000], p[i : i + 2000]).tokens for i in range(0, count, 2000)]
        )
        % 4
        for s, p in streams
    ]
    for one, other in ((0, 1), (0, 2), (1, 2), (3, 4), (0, 5), (0, 3)):
        pairs = (classes[one] * 4 + classes[other]).bincount(minlength=16)
        assert unlikeliness(pairs, torch.full((16,), 1 / 16, dtype=torch.float64)) > ALPHA, (one, other)


def test_block_and_token_within_it_are_independent() -> None:
    counts = count_picks(torch.zeros(512), Sampling(1.0), 100_000)
    pairs = counts.view(4, 16, 8).sum(-1).flatten()
    assert unlikeliness(pairs, torch.full((64,), 1 / 64, dtype=torch.float64)) > ALPHA


@given(st.data(), st.integers(1, 9), st.sampled_from((3, 128, 257, 1500)))
@settings(deadline=None, max_examples=60)
def test_a_row_is_the_same_to_the_bit_alone_and_anywhere(data: st.DataObject, rows: int, vocabulary: int) -> None:
    samplings = data.draw(st.lists(SAMPLINGS, min_size=rows, max_size=rows))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    spread = data.draw(st.sampled_from((0.1, 1.0, 5.0)))
    dtype = data.draw(st.sampled_from((torch.float32, torch.bfloat16)))
    logits = (torch.randn(rows, vocabulary, generator=generator) * spread).to(dtype)
    seen = torch.rand(rows, vocabulary, generator=generator) < 0.2
    logits[rows // 2, vocabulary // 2] = data.draw(st.sampled_from((0.0, -torch.inf, torch.nan, torch.inf)))
    seeds, positions = [10**18 + row for row in range(rows)], list(range(rows))
    order = data.draw(st.permutations(range(rows)))
    together = pick(
        logits[order],
        [samplings[row] for row in order],
        [seeds[row] for row in order],
        [positions[row] for row in order],
        seen=seen[order],
        sampler=Sampler(rows + data.draw(st.integers(0, 3)), vocabulary, CPU),
    )
    for place, row in enumerate(order):
        one = slice(row, row + 1)
        alone = pick(logits[one], [samplings[row]], seeds[one], positions[one], seen=seen[one])
        assert together.tokens[place] == alone.tokens[0]
        assert together.broken[place] == alone.broken[0]
        assert not together.unsettled[place]
        if alone.logprobs is not None:
            assert together.logprobs is not None
            assert together.logprobs[place : place + 1].view(torch.int32) == alone.logprobs.view(torch.int32)


@given(st.data(), st.sampled_from((100, 640)))
@settings(deadline=None, max_examples=20)
def test_masses_are_the_same_to_the_bit_beside_any_neighbours(data: st.DataObject, vocabulary: int) -> None:
    """Not only what is picked, which would rarely tell a difference of the last bit."""
    mine, others = data.draw(SAMPLINGS), data.draw(st.lists(SAMPLINGS, min_size=1, max_size=12))
    mine = replace(mine, temperature=mine.temperature or 1.0, repetition_penalty=1.0)
    rows, place = len(others) + 1, data.draw(st.integers(0, len(others)))
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(vocabulary + rows)) * 4
    samplings = [*others[:place], mine, *others[place:]]
    zeros, seen = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, vocabulary, dtype=torch.bool)

    def left(start: int, stop: int) -> Tensor:
        sampler, chosen = Sampler(rows, vocabulary, CPU), samplings[start:stop]
        parameters, needs = SamplingParameters.of(chosen, CPU), Needs.of(chosen)
        count = slice(0, stop - start)
        sampler.draw(logits[start:stop], zeros[count], zeros[count], parameters, needs, seen[start:stop])
        return sampler.buffers["work"][place - start].view(torch.int32).clone()

    assert torch.equal(left(0, rows), left(place, place + 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [torch.exp, torch.log])
def test_exp_and_log_are_the_same_wherever_a_value_stands(
    function: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    values = torch.rand(70_001, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 20 + 1e-3
    values = -values if function is torch.exp else values
    whole = function(values)
    for start, stop in ((0, 1), (1, 3), (7, 16), (8, 25), (70_000, 70_001), (333, 65_999)):
        assert torch.equal(function(values[start:stop].clone()), whole[start:stop])
        assert torch.equal(function(values[start:stop:3]), whole[start:stop:3])


@pytest.mark.parametrize("bad", [[torch.nan], [torch.inf], [torch.nan, torch.inf, -torch.inf], None])
@pytest.mark.parametrize("vocabulary", [5, 300])
def test_a_broken_row_is_told_and_harms_no_neighbour(bad: list[float] | None, vocabulary: int) -> None:
    kinds = [*KINDS, Sampling(0.0), replace(KINDS[-1], logprobs=True)]
    rows = len(kinds)
    well = some_logits(vocabulary).repeat(rows, 1)
    seen = torch.zeros(rows, vocabulary, dtype=torch.bool)
    expected = pick(well, kinds, range(rows), seen=seen)
    for place in range(rows):
        sick = well.clone()
        if bad is None:
            sick[place] = -torch.inf
        else:
            sick[place, vocabulary - 1 - len(bad) : vocabulary - 1] = torch.tensor(bad)
        found = pick(sick, kinds, range(rows), seen=seen)
        assert found.broken.tolist() == [row == place for row in range(rows)]
        assert found.tokens[place] == 0
        others = torch.arange(rows) != place
        assert torch.equal(found.tokens[others], expected.tokens[others])
        assert found.logprobs is not None
        assert expected.logprobs is not None
        assert torch.equal(found.logprobs[others], expected.logprobs[others])


@pytest.mark.parametrize("sampling", [Sampling(0.0), *KINDS], ids=str)
def test_a_token_that_is_ruled_out_is_never_picked(sampling: Sampling) -> None:
    row = torch.full((260,), -torch.inf)
    row[[3, 130, 259]] = torch.tensor([1.0, 1.0, 1.0])
    picked = pick(row.repeat(300, 1), [sampling] * 300, range(300), seen=torch.zeros(300, 260, dtype=torch.bool))
    assert not picked.broken.any()
    assert set(picked.tokens.tolist()) == ({3} if sampling.temperature == 0 else {3, 130, 259})


def test_temperature_0_takes_the_first_of_the_likeliest() -> None:
    logits = torch.randn(50, 400, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    logits[:, 399] = logits[:, 390] = logits[:, 5] = 9.0
    logits[0, :] = -3e38
    # Beside 1e6 a difference of 2**-24 would be lost.
    logits[1, :2], logits[1, 2:] = torch.tensor([1.0, 1.0 + 2**-23]), -1e6
    greedy = Sampling(0.0, top_k=3, top_p=0.5, min_p=0.9)
    expected = [0, 1] + [5] * 48
    assert pick(logits, [greedy] * 50, range(50)).tokens.tolist() == expected
    warm = [greedy, greedy, *[Sampling(1.0, top_k=2, top_p=0.9, min_p=0.1), greedy] * 24]
    assert pick(logits, warm, range(50)).tokens[3::2].tolist() == expected[3::2]


def test_a_penalty_moves_what_temperature_0_takes() -> None:
    logits = torch.tensor([[2.0, 1.5, -1.0], [-1.0, -1.5, -9.0]])
    seen = torch.tensor([[True, False, False], [True, False, False]])
    for penalty, tokens in ((1.3, [0, 0]), (1.4, [1, 0]), (1.6, [1, 1])):
        assert (
            pick(logits, [Sampling(0.0, repetition_penalty=penalty)] * 2, [0, 0], seen=seen).tokens.tolist() == tokens
        )


def test_extreme_logits_and_temperatures_overflow_nowhere() -> None:
    for coldest in (1e-30, 1e-300):
        assert pick(torch.tensor([[1e30, 2e30, -1e30]]), [Sampling(coldest)], [1]).tokens.tolist() == [1]
    hot = [Sampling(1e30, top_k=3, top_p=0.9, min_p=0.5)] * 200
    for row, tokens in (([3e38, -3e38, 0.0], {0}), ([90.0, -90.0, 0.0], {0, 1, 2})):
        assert set(pick(torch.tensor([row]).repeat(200, 1), hot, range(200)).tokens.tolist()) == tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logprobs_are_the_models_own(dtype: torch.dtype) -> None:
    kinds = [replace(kind, logprobs=True) for kind in (*KINDS, Sampling(0.0))]
    rows = len(kinds)
    logits = torch.stack([some_logits(333, seed=row, spread=4.0) + 50 for row in range(rows)]).to(dtype)
    before = logits.clone()
    picked = pick(logits, kinds, range(rows), seen=torch.ones(rows, 333, dtype=torch.bool))
    expected = before.double().log_softmax(-1).gather(1, picked.tokens[:, None])[:, 0]
    assert picked.logprobs is not None
    assert picked.logprobs.dtype == torch.float32
    assert torch.allclose(picked.logprobs.double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(logits, before), "logits are only read"
    assert pick(logits, KINDS[:1] * rows, range(rows)).logprobs is None


def test_parameters_can_be_written_and_selected() -> None:
    kinds = [*KINDS, Sampling(0.0, top_k=5, top_p=0.1, min_p=0.2)]
    with torch.inference_mode():
        slots = SamplingParameters.of([Sampling(0.0)] * len(kinds), CPU)
    places = torch.randperm(len(kinds), generator=torch.Generator().manual_seed(3))
    slots.write(places, [kinds[place] for place in places.tolist()])
    some = torch.tensor([4, 0, len(kinds) - 1])
    for found, wanted in ((slots, kinds), (slots.select(some), [kinds[row] for row in some.tolist()])):
        expected = SamplingParameters.of(wanted, CPU)
        for name in ("temperature", "top_k", "top_p", "log_min_p", "penalty"):
            assert torch.equal(getattr(found, name), getattr(expected, name))


def test_needs_are_what_some_row_asks_for() -> None:
    assert Needs.of([]) == Needs()
    assert Needs.of([Sampling(0.0, top_k=9, top_p=0.5, min_p=0.5)]) == Needs()
    assert Needs.of([Sampling(0.0, repetition_penalty=0.9, logprobs=True)]) == Needs(penalty=True, logprobs=True)
    mixed = [Sampling(0.5, top_k=3), Sampling(1.0, top_p=0.9), Sampling(0.0), Sampling(1.0, min_p=0.1, top_k=2)]
    assert Needs.of(mixed) == Needs(sampled=True, largest_k=3, top_p=True, min_p=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "Sampling.temperature: found -0.1, expected 0 or more"),
        ({"temperature": math.nan}, "Sampling.temperature: found nan, expected 0 or more"),
        ({"top_k": -1}, "Sampling.top_k: found -1, expected 0 or more"),
        ({"top_p": 0.0}, "Sampling.top_p: found 0.0, expected above 0 and at most 1"),
        ({"min_p": 1.5}, "Sampling.min_p: found 1.5, expected at least 0 and at most 1"),
        ({"repetition_penalty": 0.0}, "Sampling.repetition_penalty: found 0.0, expected above 0"),
    ],
)
def test_what_means_nothing_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**options)  # type: ignore[arg-type]  # an int among them
