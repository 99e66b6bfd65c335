"""Random numbers that are a function of a record's seed, a position and a token alone.

There is no generator whose state could depend on the neighbours in a batch, on resume, or on what was generated
before: uniform bits are a hash of the three. It is built from the output function of SplitMix64 (Steele, Lea and Flood
2014; constants: Stafford's mix13, as in Vigna's public-domain splitmix64.c)::

    row   = mix(mix(seed + G) + (position + 1) * G)     mod 2**64, G = 0x9E3779B97F4A7C15
    token = mix((token + 1) * G)                        the token-th output of SplitMix64 seeded with 0
    bits  = mix(row ^ token)

Tensors hold 64 bits as int64: addition and multiplication wrap as they should, and a logical right shift is an
arithmetic one with the sign's copies masked away. Integers only, hence the same bits on every device; logarithms may
differ in the last bit between devices.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["gumbel", "token_keys"]


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of 64-bit patterns held as int64; ``bits`` >= 1."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's output function, a bijection of 64 bits, in place."""
    x.bitwise_xor_(_shift_right(x, 30)).mul_(_MIX1)
    x.bitwise_xor_(_shift_right(x, 27)).mul_(_MIX2)
    return x.bitwise_xor_(_shift_right(x, 31))


@lru_cache(maxsize=8)
def token_keys(count: int, device: torch.device, first: int = 0) -> Tensor:
    """The token's part of the hash for ``count`` ids from ``first`` on, int64 [count].

    Computed once and shared: not to be written to.
    """
    return _mix(torch.arange(first + 1, first + count + 1, dtype=torch.int64, device=device).mul_(_GOLDEN))


def _bits(seeds: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """The hash: seeds and positions int64 [B], tokens from ``token_keys`` [N] or [B, N] -> int64 [B, N]."""
    rows = _mix(_mix(seeds + _GOLDEN).add_((positions + 1).mul_(_GOLDEN)))
    return _mix(rows[:, None] ^ tokens)


def gumbel(seeds: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """Gumbel noise, float64 [B, N], for seeds and positions (int64 [B]) and ``token_keys`` (int64 [N] or [B, N]).

    u = (k + 1/2) / 2**52 with k of 52 bits is exact in float64 and neither 0 nor 1, so the noise is finite:
    between -3.61 and 36.74.
    """
    u = _shift_right(_bits(seeds, positions, tokens), 12).to(torch.float64).add_(0.5).mul_(2.0**-52)
    return u.log_().neg_().log_().neg_()
