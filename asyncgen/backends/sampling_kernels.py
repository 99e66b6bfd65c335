"""The sampler's passes over the logits as triton kernels, which ``sampling_triton`` starts.

They wait for nothing and share nothing between rows: what a row gets depends on nothing but the row, to the bit. That
holds for any layout too (a kernel's order of adding up changes with the kind and the alignment of logits, hence with a
neighbour's penalty): sums are sums of integers. Tiles and warps are constants, never measured. The hash is that of
``noise`` to the bit; exponentials and logarithms may differ in the last bits.

Masses of blocks are relative to the block's own largest logit, so that one pass finds both, in steps of 2**-23. Offsets
into logits are 64 bits wide. ``tl.max`` does not pass on NaN, hence infinity takes its place. Where numbers would meet
as in infinity minus infinity, what comes out never counts: it is masked, or the row is broken.

Small vectors come without a promise of alignment, so that no slice of them compiles a kernel anew. Logits keep theirs,
for it makes loads wide. bfloat16 does not work in triton's interpreter, which has numpy for its arithmetic.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["choose", "nucleus", "penalise", "sum_rows", "survey"]

_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15 - (1 << 64))
_MIX1 = tl.constexpr(0xBF58476D1CE4E5B9 - (1 << 64))
_MIX2 = tl.constexpr(0x94D049BB133111EB - (1 << 64))
_LOW33 = tl.constexpr((1 << 33) - 1)
_LOW34 = tl.constexpr((1 << 34) - 1)
_LOW37 = tl.constexpr((1 << 37) - 1)
_LOW52 = tl.constexpr((1 << 52) - 1)
_ULP52 = tl.constexpr(2.0**-52)
HASHED_FROM = 1 << 32
"""Blocks are hashed as tokens from here on."""
_BLOCK_IDS = tl.constexpr(HASHED_FROM)
_LOG2_E = tl.constexpr(1.4426950408889634)
_STEP = tl.constexpr(23.0)
_STEPS, _STEP_SIZE = tl.constexpr(2.0**40), tl.constexpr(2.0**-40)
"""A block's mass, at most 128, is counted in steps of 2**-23, a row's in steps of 2**-40."""


@triton.jit
def _mix(x: tl.tensor) -> tl.tensor:
    """``noise``'s: a logical right shift is an arithmetic one without the sign's copies."""
    x = (x ^ ((x >> 30) & _LOW34)) * _MIX1
    x = (x ^ ((x >> 27) & _LOW37)) * _MIX2
    return x ^ ((x >> 31) & _LOW33)


@triton.jit
def _row_hash(seed: tl.tensor, position: tl.tensor) -> tl.tensor:
    return _mix(_mix(seed + _GOLDEN) + (position + 1) * _GOLDEN)


@triton.jit
def _bits(row: tl.tensor, ids: tl.tensor) -> tl.tensor:
    """The hash, for a row's part of it and int64 ids of tokens or blocks."""
    return _mix(row ^ _mix((ids + 1) * _GOLDEN))


@triton.jit
def _gumbel(row: tl.tensor, ids: tl.tensor) -> tl.tensor:
    """Gumbel noise, float64."""
    u = (((_bits(row, ids) >> 12) & _LOW52).to(tl.float64) + 0.5) * _ULP52
    return -tl.log(-tl.log(u))


@triton.jit
def _scale(temperatures: tl.tensor, row: tl.tensor, WARM: tl.constexpr) -> tl.tensor:
    """What turns a difference of logits into an exponent of 2."""
    scale = _LOG2_E
    if WARM:
        scale = _LOG2_E / tl.load(temperatures + row)
    return scale


@triton.jit
def _finite(x: tl.tensor) -> tl.tensor:
    """The numbers, with 0 for those that are none."""
    return tl.where(tl.abs(x) < float("inf"), x, 0.0)


@triton.jit
def _block_masses(values: tl.tensor, best: tl.tensor, edge: tl.tensor, scale: tl.tensor) -> tl.tensor:
    """float32 [TILE]: of values [TILE, BLOCK] at or above ``edge``, relative to ``best`` [TILE]."""
    shares = tl.exp2(tl.fma(values - _finite(best)[:, None], tl.zeros_like(values) + scale, _STEP))
    steps = (tl.where(values >= edge, shares, 0.0) + 0.5).to(tl.int32)
    return tl.sum(steps, axis=1).to(tl.float32) * 2.0**-23


@triton.jit
def _row_steps(masses: tl.tensor, maxima: tl.tensor, best: tl.tensor, scale: tl.tensor) -> tl.tensor:
    """int64 [TILE]: what blocks add to the mass of their row."""
    shares = tl.exp2((maxima - best) * scale)
    return (masses.to(tl.float64) * shares.to(tl.float64) * _STEPS).to(tl.int64)


@triton.jit(do_not_specialize_on_alignment=["temperatures", "edges"])
def survey(
    logits: tl.tensor,
    stride: tl.tensor,
    vocabulary: tl.tensor,
    blocks: tl.tensor,
    temperatures: tl.tensor,
    edges: tl.tensor,
    maxima: tl.tensor,
    masses: tl.tensor,
    WARM: tl.constexpr,
    EDGED: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """TILE blocks of one row: grid (tiles, rows). Writes maxima and masses float32 [B, blocks].

    EDGED: reads the maxima, and writes the masses of logits at or above the row's edge; blocks below are not read.
    """
    row = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0) * TILE + tl.arange(0, TILE)
    there = block < blocks
    places = row * blocks + block
    tokens = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    wanted = tokens < vocabulary
    edge = float("-inf")
    if EDGED:
        edge = tl.load(edges + row)
        best = tl.load(maxima + places, mask=there, other=float("-inf"))
        wanted = wanted & (best >= edge)[:, None]
    values = tl.load(logits + row * stride + tokens, mask=wanted, other=float("-inf")).to(tl.float32)
    if not EDGED:
        best = tl.max(tl.where(values == values, values, float("inf")), axis=1)  # noqa: PLR0124  # NaN is not itself
        tl.store(maxima + places, best, mask=there)
    tl.store(masses + places, _block_masses(values, best, edge, _scale(temperatures, row, WARM)), mask=there)


@triton.jit(do_not_specialize_on_alignment=["temperatures", "best", "totals"])
def sum_rows(
    maxima: tl.tensor,
    masses: tl.tensor,
    blocks: tl.tensor,
    temperatures: tl.tensor,
    best: tl.tensor,
    totals: tl.tensor,
    WARM: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:
    """One program a row: the row's mass relative to its best logit, float64 [B]."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    there = block < blocks
    largest = tl.load(maxima + row * blocks + block, mask=there, other=float("-inf"))
    mass = tl.load(masses + row * blocks + block, mask=there, other=0.0)
    steps = _row_steps(mass, largest, _finite(tl.load(best + row)), _scale(temperatures, row, WARM))
    tl.store(totals + row, tl.sum(steps, axis=0).to(tl.float64) * _STEP_SIZE)


@triton.jit(do_not_specialize_on_alignment=["penalties"])
def penalise(
    logits: tl.tensor,
    stride: tl.tensor,
    seen: tl.tensor,
    seen_stride: tl.tensor,
    penalties: tl.tensor,
    out: tl.tensor,
    out_stride: tl.tensor,
    vocabulary: tl.tensor,
    TILE: tl.constexpr,
) -> None:
    """TILE tokens of one row: grid (tiles, rows). ``seen`` are bytes."""
    row = tl.program_id(1).to(tl.int64)
    tokens = tl.program_id(0) * TILE + tl.arange(0, TILE)
    there = tokens < vocabulary
    values = tl.load(logits + row * stride + tokens, mask=there, other=0.0).to(tl.float32)
    marks = tl.load(seen + row * seen_stride + tokens, mask=there, other=0)
    penalty = tl.load(penalties + row)
    changed = tl.where(values > 0, tl.div_rn(values, tl.zeros_like(values) + penalty), values * penalty)
    tl.store(out + row * out_stride + tokens, tl.where(marks != 0, changed, values), mask=there)


@triton.jit
def _rank(number: tl.tensor, MASK: tl.constexpr) -> tl.tensor:
    """int64 in the same order as floating-point numbers of a kind, without gaps; see ``truncation``."""
    kind: tl.constexpr = tl.int16 if MASK == 0x7FFF else tl.int32
    bits = number.to(kind, bitcast=True).to(tl.int64)
    return tl.where(bits < 0, bits ^ MASK, bits)


@triton.jit
def _from_rank(rank: tl.tensor, KIND: tl.constexpr, MASK: tl.constexpr) -> tl.tensor:
    """float32."""
    bits = tl.where(rank < 0, rank ^ MASK, rank)
    kind: tl.constexpr = tl.int16 if MASK == 0x7FFF else tl.int32
    return bits.to(kind).to(KIND, bitcast=True).to(tl.float32)


@triton.jit
def _mass_at(
    values_of: tl.tensor,
    vocabulary: tl.tensor,
    blocks: tl.tensor,
    maxima_of: tl.tensor,
    best: tl.tensor,
    scale: tl.tensor,
    edge: tl.tensor,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:
    """The row's mass at or above ``edge``, float64; blocks below are not read."""
    steps = tl.zeros([TILE], tl.int64)
    for first in range(0, blocks, TILE):
        block = first + tl.arange(0, TILE)
        largest = tl.load(maxima_of + block, mask=block < blocks, other=float("-inf"))
        tokens = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        wanted = (tokens < vocabulary) & (largest >= edge)[:, None]
        values = tl.load(values_of + tokens, mask=wanted, other=float("-inf")).to(tl.float32)
        steps += _row_steps(_block_masses(values, largest, edge, scale), largest, best, scale)
    return tl.sum(steps, axis=0).to(tl.float64) * _STEP_SIZE


@triton.jit(
    do_not_specialize_on_alignment=["temperatures", "edges", "best", "totals", "shares", "ceilings", "rows", "found"]
)
def nucleus(
    logits: tl.tensor,
    stride: tl.tensor,
    vocabulary: tl.tensor,
    blocks: tl.tensor,
    maxima: tl.tensor,
    temperatures: tl.tensor,
    edges: tl.tensor,
    best: tl.tensor,
    totals: tl.tensor,
    shares: tl.tensor,
    ceilings: tl.tensor,
    rows: tl.tensor,
    found: tl.tensor,
    LOWEST: tl.constexpr,
    MASK: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """One program a row, done at once unless the row is marked: the largest logit whose mass reaches the share.

    By bisection over all numbers of the logits' kind, between LOWEST (the rank of the smallest finite one) and the
    ceiling. Nor need it look where all tokens below together have no more mass than may be dropped.
    """
    kind: tl.constexpr = logits.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    ceiling = tl.load(ceilings + row)
    if tl.load(rows + row) != 0:
        top, temperature, share = tl.load(best + row), tl.load(temperatures + row), tl.load(shares + row)
        total, kept = tl.load(totals + row), tl.load(edges + row)
        spare = tl.maximum(total * (1.0 - share), 1e-300) / vocabulary
        # Half of it, and a rank less: whatever the rounding, this bound is not too high.
        bound = top.to(tl.float64) + temperature.to(tl.float64) * (tl.log(spare) - 0.7)
        low = tl.maximum(_rank(bound.to(tl.float32).to(kind), MASK) - 1, LOWEST)
        high = _rank(ceiling.to(kind), MASK) + 1
        scale = _LOG2_E / temperature
        while high - low > 1:
            middle = (low + high) >> 1
            edge = tl.maximum(_from_rank(middle, kind, MASK), kept)
            mass = _mass_at(
                logits + row * stride,
                vocabulary,
                blocks,
                maxima + row * blocks,
                top,
                scale,
                edge,
                BLOCK,
                TILE,
            )
            enough = mass >= total * share
            low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
        ceiling = _from_rank(low, kind, MASK)
    tl.store(found + row, ceiling)


@triton.jit(do_not_specialize_on_alignment=["temperatures", "edges", "warm", "best", "seeds", "positions", "tokens"])
def choose(
    logits: tl.tensor,
    stride: tl.tensor,
    vocabulary: tl.tensor,
    blocks: tl.tensor,
    maxima: tl.tensor,
    masses: tl.tensor,
    best: tl.tensor,
    warm: tl.tensor,
    temperatures: tl.tensor,
    edges: tl.tensor,
    seeds: tl.tensor,
    positions: tl.tensor,
    tokens: tl.tensor,
    WARM: tl.constexpr,
    EDGED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:
    """One program a row: a block by noise over the logarithms of masses, then a token of the block by noise."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    there = block < blocks
    top = _finite(tl.load(best + row))
    largest = tl.load(maxima + row * blocks + block, mask=there, other=float("-inf"))
    scores = largest.to(tl.float64)
    if WARM:
        is_warm = tl.load(warm + row) != 0
        temperature = tl.load(temperatures + row)
        hashed = _row_hash(tl.load(seeds + row), tl.load(positions + row))
        mass = tl.load(masses + row * blocks + block, mask=there, other=0.0).to(tl.float64)
        noisy = tl.log(tl.where(mass > 0, mass, 1.0)) + (scores - top) / temperature.to(tl.float64)
        noisy += _gumbel(hashed, block.to(tl.int64) + _BLOCK_IDS)
        scores = tl.where(is_warm, tl.where(mass > 0, noisy, float("-inf")), scores)
    picked = tl.minimum(tl.argmax(scores, axis=0), blocks - 1)
    token = picked * BLOCK + tl.arange(0, BLOCK)
    left = token < vocabulary
    values = tl.load(logits + row * stride + token, mask=left, other=float("-inf")).to(tl.float32)
    inside = values.to(tl.float64)
    if WARM:
        scored = tl.div_rn(values - top, tl.zeros_like(values) + temperature)
        inside = tl.where(is_warm, _gumbel(hashed, token.to(tl.int64)) + scored.to(tl.float64), inside)
    if EDGED:
        left = left & (values >= tl.load(edges + row))
    place = tl.argmax(tl.where(left, inside, float("-inf")), axis=0)
    tl.store(tokens + row, (picked * BLOCK + place).to(tl.int64))
