"""The per-record sampler: the hash, the noise, the filters, the distribution, and no influence of neighbours."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asyncgen.backends.sampling import SamplingParameters, _bits, gumbel, perturb, token_keys
from asyncgen.config import Generation

CPU = torch.device("cpu")
MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
SEEDS = st.integers(0, 2**63 - 1)


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def expected_bits(seed: int, position: int, token: int) -> int:
    row = mix((mix((seed + GOLDEN) & MASK) + (position + 1) * GOLDEN) & MASK)
    return mix(row ^ mix(((token + 1) * GOLDEN) & MASK))


def pick(logits: Tensor, seeds: list[int], positions: list[int], **generation: float) -> list[int]:
    settings_ = Generation.model_validate(generation)
    parameters = SamplingParameters.uniform(settings_, len(seeds), CPU)
    keys = token_keys(logits.shape[-1], CPU)
    picks: list[int] = (
        perturb(logits, torch.tensor(seeds), torch.tensor(positions), keys, parameters).argmax(-1).tolist()
    )
    return picks


def kept(logits: list[float], **generation: float) -> set[int]:
    """The tokens that some of 4,000 seeds picks."""
    seeds = list(range(4000))
    return set(pick(torch.tensor(logits).expand(len(seeds), -1), seeds, [0] * len(seeds), **generation))


def test_token_keys_are_the_published_splitmix64_sequence() -> None:
    # The first outputs for seed 0, as listed with the reference implementations.
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert [key & MASK for key in token_keys(4, CPU).tolist()] == published


@given(st.lists(st.tuples(SEEDS, st.integers(0, 2**31)), min_size=1, max_size=4))
@settings(deadline=None, max_examples=50)
def test_hash_equals_a_reference_in_unbounded_integers(rows: list[tuple[int, int]]) -> None:
    seeds, positions = (torch.tensor(column, dtype=torch.int64) for column in zip(*rows, strict=True))
    bits = _bits(seeds, positions, token_keys(7, CPU)).tolist()
    assert [[b & MASK for b in row] for row in bits] == [
        [expected_bits(seed, position, token) for token in range(7)] for seed, position in rows
    ]


def test_noise_is_the_double_logarithm_of_the_hash_in_float32() -> None:
    noise = gumbel(torch.tensor([5]), torch.tensor([3]), token_keys(200, CPU))[0]
    for token, value in enumerate(noise.tolist()):
        u = ((expected_bits(5, 3, token) >> 12) + 0.5) * 2.0**-52
        assert value == pytest.approx(-math.log(-math.log(u)), rel=1e-6, abs=1e-6)


def test_u_is_never_0_or_1() -> None:
    for k in (0, 2**52 - 1):
        u = torch.tensor([k], dtype=torch.int64).to(torch.float64).add_(0.5).mul_(2.0**-52)
        noise = u.log().neg().log().neg()
        assert 0 < u.item() < 1
        assert math.isfinite(noise.item())
        assert -3.61 < noise.item() < 36.75


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_picks_follow_the_softmax(temperature: float) -> None:
    """Chi-square of 40,000 picks over 12 tokens: 11 degrees of freedom, 31.3 is the 0.1 % point."""
    count = 40_000
    logits = torch.linspace(-2, 2, 12)
    half = count // 2
    for seeds, positions in (
        (list(range(count)), [0] * count),  # neighbouring seeds
        ([9] * count, list(range(count))),  # neighbouring positions
        ([i * 2**40 for i in range(half)] * 2, [0] * half + [1] * half),
    ):
        picks = pick(logits.expand(count, -1), seeds, positions, temperature=temperature)
        observed = torch.bincount(torch.tensor(picks), minlength=12).double()
        wanted = (logits.double() / temperature).softmax(-1) * count
        assert ((observed - wanted) ** 2 / wanted).sum().item() < 31.3


def test_tokens_of_a_row_are_independent() -> None:
    """Pairs of successive picks, 4 x 4 tokens: 15 degrees of freedom, 37.7 is the 0.1 % point."""
    count = 20_000
    seeds, logits = list(range(count)), torch.zeros(count, 4)
    first = torch.tensor(pick(logits, seeds, [0] * count, temperature=1.0))
    second = torch.tensor(pick(logits, seeds, [1] * count, temperature=1.0))
    observed = torch.bincount(first * 4 + second, minlength=16).double()
    assert ((observed - count / 16) ** 2 / (count / 16)).sum().item() < 37.7


def test_temperature_0_takes_the_likeliest_token() -> None:
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(1))
    assert pick(logits, list(range(50)), [0] * 50, temperature=0.0, top_k=3, top_p=0.5) == logits.argmax(-1).tolist()


def test_tiny_temperatures_do_not_overflow() -> None:
    assert pick(torch.tensor([[1e30, 2e30, -1e30]]), [1], [0], temperature=1e-30) == [1]


def test_each_row_has_its_own_parameters() -> None:
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0]).expand(4, -1)
    parameters = SamplingParameters(
        temperature=torch.tensor([0.0, 5.0, 5.0, 5.0]),
        top_k=torch.tensor([0, 1, 0, 2]),
        top_p=torch.tensor([1.0, 1.0, 1e-6, 1.0], dtype=torch.float64),
        min_p=torch.tensor([0.0, 0.0, 0.0, 0.0]),
        largest_k=2,
    )
    found: list[set[int]] = [set(), set(), set(), set()]
    for seed in range(200):
        seeds = torch.full((4,), seed)
        scores = perturb(logits, seeds, torch.zeros(4, dtype=torch.int64), token_keys(4, CPU), parameters)
        for row, token in enumerate(scores.argmax(-1).tolist()):
            found[row].add(token)
    assert found == [{0}, {0}, {0}, {0, 1}]


def test_filters_keep_what_they_say() -> None:
    logits = [math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]
    assert kept(logits, temperature=1.0) == {0, 1, 2, 3}
    assert kept(logits, temperature=1.0, top_k=2) == {0, 1}
    assert kept(logits, temperature=1.0, top_k=9) == {0, 1, 2, 3}
    assert kept(logits, temperature=1.0, top_p=0.69) == {0, 1}
    assert kept(logits, temperature=1.0, top_p=0.71) == {0, 1, 2}
    assert kept(logits, temperature=1.0, top_p=1e-9) == {0}
    assert kept(logits, temperature=1.0, min_p=0.45) == {0, 1, 2}
    assert kept(logits, temperature=1.0, min_p=1.0) == {0}
    # top-p looks at what top-k left: 4/7 and 3/7.
    assert kept(logits, temperature=1.0, top_k=2, top_p=0.5) == {0}
    # Temperature comes first: flattened, the best token is no longer half of everything.
    assert kept(logits, temperature=50.0, top_p=0.4) == {0, 1}


def test_ties_do_not_depend_on_anything_but_the_row() -> None:
    logits = [1.0, 2.0, 2.0, 2.0, 0.0]
    assert kept(logits, temperature=1.0, top_p=0.5) == {1, 2}, "the lowest ids of equals"
    assert kept(logits, temperature=1.0, top_k=1) == {1, 2, 3}, "all that tie with the last one"


@given(st.randoms(use_true_random=False), st.integers(2, 20))
@settings(deadline=None, max_examples=30)
def test_neighbours_do_not_influence_a_pick(random: object, rows: int) -> None:
    shuffle = random.shuffle  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    seeds = [1000 + i for i in range(rows)]
    logits = torch.randn(rows, 257, generator=torch.Generator().manual_seed(rows)) * 3
    options = {"temperature": 0.9, "top_k": 100, "top_p": 0.95, "min_p": 0.01}
    alone = [pick(logits[i : i + 1], [seeds[i]], [i], **options)[0] for i in range(rows)]
    order = list(range(rows))
    shuffle(order)
    together = pick(logits[order], [seeds[i] for i in order], order, **options)
    assert together == [alone[i] for i in order]
