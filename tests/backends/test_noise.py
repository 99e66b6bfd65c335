"""The hash against a reference in unbounded integers, and the noise made of it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncgen.backends.noise import _bits, gumbel, token_keys
from tests.backends.exact import CPU

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


def test_token_keys_are_the_published_splitmix64_sequence() -> None:
    # The first outputs for seed 0, as listed with the reference implementations.
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert [key & MASK for key in token_keys(4, CPU).tolist()] == published
    assert [key & MASK for key in token_keys(2, CPU, 2).tolist()] == published[2:]


@given(st.lists(st.tuples(SEEDS, st.integers(0, 2**31)), min_size=1, max_size=4), st.sampled_from((0, 1 << 32)))
@settings(deadline=None, max_examples=50)
def test_hash_equals_a_reference_in_unbounded_integers(rows: list[tuple[int, int]], first: int) -> None:
    seeds, positions = (torch.tensor(column, dtype=torch.int64) for column in zip(*rows, strict=True))
    expected = [[expected_bits(seed, position, first + token) for token in range(7)] for seed, position in rows]
    for keys in (token_keys(7, CPU, first), token_keys(7, CPU, first).expand(len(rows), -1)):
        assert [[b & MASK for b in row] for row in _bits(seeds, positions, keys).tolist()] == expected


def test_noise_is_the_double_logarithm_of_the_hash() -> None:
    noise = gumbel(torch.tensor([5]), torch.tensor([3]), token_keys(200, CPU))[0]
    for token, value in enumerate(noise.tolist()):
        u = ((expected_bits(5, 3, token) >> 12) + 0.5) * 2.0**-52
        assert value == pytest.approx(-math.log(-math.log(u)), rel=1e-14, abs=1e-14)


def test_u_is_never_0_or_1() -> None:
    for k in (0, 2**52 - 1):
        u = torch.tensor([k], dtype=torch.int64).to(torch.float64).add_(0.5).mul_(2.0**-52)
        noise = u.log().neg().log().neg()
        assert 0 < u.item() < 1
        assert math.isfinite(noise.item())
        assert -3.61 < noise.item() < 36.75
