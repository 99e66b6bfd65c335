"""The per-record sampler: a record's random stream is a function of its seed, the position and the token alone.

The Gumbel-max trick (Gumbel 1954; Maddison et al. 2014): with independent noise ``g = -log(-log(u))``, u uniform in
(0, 1), the argmax of ``logits / temperature + g`` is distributed as ``softmax(logits / temperature)``. The uniform
bits come from a hash of (record seed, position, token), so there is no generator whose state could depend on the
neighbours in a batch, on resume, or on what was generated before.

The hash is built from the output function of SplitMix64 (Steele, Lea and Flood 2014; constants: Stafford's mix13, as
in Vigna's public-domain splitmix64.c)::

    row   = mix(mix(seed + G) + (position + 1) * G)     mod 2**64, G = 0x9E3779B97F4A7C15
    token = mix((token + 1) * G)                        the token-th output of SplitMix64 seeded with 0
    bits  = mix(row ^ token)

Tensors hold 64 bits as int64: addition and multiplication wrap as they should, and a logical right shift is an
arithmetic one with the sign's copies masked away. Integers only, hence the same bits on every device. The noise is
computed in float64 from 52 of them and rounded to float32; logarithms may differ in the last bit between devices.

Order: temperature, top-k, top-p, min-p, noise. Rows do not influence each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from asyncgen.config import Generation

__all__ = ["SamplingParameters", "gumbel", "perturb", "token_keys"]


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """What to do with the logits of each of B rows; None where no row asks for it."""

    temperature: Tensor | None
    """float32 [B]; 0 takes the likeliest token of that row; None does so in all rows."""
    top_k: Tensor | None = None
    """int64 [B]; keep this many likeliest tokens (and those that tie with the last of them); 0 keeps all."""
    top_p: Tensor | None = None
    """float64 [B]; keep the smallest set of likeliest tokens whose probability reaches this; 1 keeps all."""
    min_p: Tensor | None = None
    """float32 [B]; drop tokens less likely than this share of the likeliest one's probability; 0 drops none."""
    largest_k: int = 0
    """The largest number in ``top_k``: known beforehand, so that no device is asked for it."""

    @classmethod
    def uniform(cls, generation: Generation, rows: int, device: torch.device) -> SamplingParameters:
        """The same parameters, those of a run, in every row."""

        def full(value: float, neutral: float, dtype: torch.dtype) -> Tensor | None:
            return None if value == neutral else torch.full((rows,), value, dtype=dtype, device=device)

        if generation.temperature == 0:
            return cls(None)
        return cls(
            torch.full((rows,), generation.temperature, dtype=torch.float32, device=device),
            full(generation.top_k, 0, torch.int64),
            full(generation.top_p, 1.0, torch.float64),
            full(generation.min_p, 0.0, torch.float32),
            generation.top_k,
        )


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of 64-bit patterns held as int64; ``bits`` >= 1."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's output function, a bijection of 64 bits, in place."""
    x.bitwise_xor_(_shift_right(x, 30)).mul_(_MIX1)
    x.bitwise_xor_(_shift_right(x, 27)).mul_(_MIX2)
    return x.bitwise_xor_(_shift_right(x, 31))


@lru_cache(maxsize=4)
def token_keys(vocabulary: int, device: torch.device) -> Tensor:
    """The token's part of the hash, int64 [vocabulary]. Computed once and shared: not to be written to."""
    return _mix(torch.arange(1, vocabulary + 1, dtype=torch.int64, device=device).mul_(_GOLDEN))


def _bits(seeds: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """The hash: seeds and positions int64 [B], tokens from ``token_keys`` [V] -> int64 [B, V]."""
    rows = _mix(_mix(seeds + _GOLDEN).add_((positions + 1).mul_(_GOLDEN)))
    return _mix(rows[:, None] ^ tokens)


def gumbel(seeds: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """Gumbel noise, float32 [B, V], for record seeds and positions (int64 [B]) and ``token_keys`` (int64 [V]).

    u = (k + 1/2) / 2**52 with k of 52 bits is exact in float64 and neither 0 nor 1, so the noise is finite:
    between -3.61 and 36.74.
    """
    u = _shift_right(_bits(seeds, positions, tokens), 12).to(torch.float64).add_(0.5).mul_(2.0**-52)
    return u.log_().neg_().log_().neg_().to(torch.float32)


def perturb(logits: Tensor, seeds: Tensor, positions: Tensor, tokens: Tensor, parameters: SamplingParameters) -> Tensor:
    """Scores float32 [B, V] whose argmax is each row's pick, from its logits [B, V] (changed or not: not promised).

    ``seeds`` and ``positions`` are int64 [B] (position: tokens the record has generated so far), ``tokens`` comes from
    ``token_keys``. Of tokens with equal scores, argmax takes the first.
    """
    if parameters.temperature is None:
        return logits
    warm = parameters.temperature[:, None] > 0
    # Differences to the best keep float32's digits for the noise, whatever the offset, and cannot overflow upwards.
    scores = logits.to(torch.float32)
    scores = (scores - scores.amax(dim=-1, keepdim=True)).div_(torch.where(warm, parameters.temperature[:, None], 1.0))
    # The likeliest token survives every filter, so rows of temperature 0 need none of their own.
    if parameters.top_k is not None:
        scores = _keep_top_k(scores, parameters.top_k, parameters.largest_k)
    if parameters.top_p is not None:
        scores = _keep_top_p(scores, parameters.top_p)
    if parameters.min_p is not None:
        scores = _keep_min_p(scores, parameters.min_p)
    return scores.add_(gumbel(seeds, positions, tokens).mul_(warm))


def _keep_top_k(scores: Tensor, top_k: Tensor, largest_k: int) -> Tensor:
    likeliest = scores.topk(min(largest_k, scores.shape[-1]), dim=-1).values
    place = (top_k - 1).clamp(min=0, max=likeliest.shape[-1] - 1)
    threshold = torch.where(top_k > 0, likeliest.gather(-1, place[:, None])[:, 0], -torch.inf)
    return scores.masked_fill(scores < threshold[:, None], -torch.inf)


def _keep_top_p(scores: Tensor, top_p: Tensor) -> Tensor:
    """Of equally likely tokens at the edge, those with the lowest ids are kept."""
    likeliest, order = scores.sort(dim=-1, descending=True, stable=True)
    probabilities = likeliest.to(torch.float64).softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    drop = (before >= top_p[:, None]) & (top_p[:, None] < 1)
    drop[:, 0] = False
    return scores.masked_fill(torch.zeros_like(drop).scatter_(-1, order, drop), -torch.inf)


def _keep_min_p(scores: Tensor, min_p: Tensor) -> Tensor:
    return scores.masked_fill(scores < min_p[:, None].log(), -torch.inf)  # the best score is 0
