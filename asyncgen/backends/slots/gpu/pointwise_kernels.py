"""The kernels of ``Pointwise``: what a model does to single rows between its products, each in one launch.

Arithmetic is float32, rounded to the rows' number format where the model's own code rounds. What a row gets depends on
nothing but the row. Widths are powers of two, sizes what is real of them; a row's elements are contiguous. Strides are
the same in every pass of a model, so the compiler is told of their divisors, which makes loads wide.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["rms_norm", "rotate", "silu_product"]


@triton.jit
def rms_norm(
    rows: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    size: tl.tensor,
    eps: tl.tensor,
    width: tl.constexpr,
) -> None:
    """Program (row): root mean square norm (Zhang and Sennrich 2019), rounded, times ``weight``; all [T, size]."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, width)
    real = at < size
    values = tl.load(rows + row * size + at, mask=real, other=0.0)
    wide = values.to(tl.float32)
    scaled = (wide * tl.rsqrt(tl.sum(wide * wide, 0) / size + eps)).to(values.dtype)
    scale = tl.load(weight + at, mask=real, other=0.0)
    result = scale.to(tl.float32) * scaled.to(tl.float32)
    tl.store(out + row * size + at, result.to(out.dtype.element_ty), mask=real)


@triton.jit
def silu_product(
    gate: tl.tensor,
    up: tl.tensor,
    out: tl.tensor,
    gate_stride: tl.tensor,
    up_stride: tl.tensor,
    size: tl.tensor,
    width: tl.constexpr,
) -> None:
    """Program (row, block): silu(gate), rounded, times ``up``; ``out`` is [T, size]."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * width + tl.arange(0, width)
    real = at < size
    given = tl.load(gate + row * gate_stride + at, mask=real, other=0.0)
    wide = given.to(tl.float32)
    activated = (wide / (1.0 + tl.exp(-wide))).to(given.dtype)
    other = tl.load(up + row * up_stride + at, mask=real, other=0.0)
    result = activated.to(tl.float32) * other.to(tl.float32)
    tl.store(out + row * size + at, result.to(out.dtype.element_ty), mask=real)


@triton.jit
def rotate(
    queries: tl.tensor,
    keys: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    query_out: tl.tensor,
    key_out: tl.tensor,
    query_token: tl.tensor,
    query_head: tl.tensor,
    key_token: tl.tensor,
    key_head: tl.tensor,
    angle_token: tl.tensor,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    half: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Program (token, head; those of the keys come behind): rotary positions (Su et al. 2021) on two halves of a head.

    The results are [T, heads, 2 half] and [T, kv_heads, 2 half]; ``cos`` and ``sin`` [T, 2 half].
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    if head < heads:
        source = queries + token * query_token + head * query_head
        target = query_out + (token * heads + head) * 2 * half
    else:
        source = keys + token * key_token + (head - heads) * key_head
        target = key_out + (token * kv_heads + head - heads) * 2 * half
    at = tl.arange(0, width)
    real = at < half
    first = tl.load(source + at, mask=real, other=0.0)
    second = tl.load(source + half + at, mask=real, other=0.0)
    angle = token * angle_token + at
    first_turned = _turned(
        first,
        tl.load(cos + angle, mask=real, other=0.0),
        -second,
        tl.load(sin + angle, mask=real, other=0.0),
    )
    second_turned = _turned(
        second,
        tl.load(cos + angle + half, mask=real, other=0.0),
        first,
        tl.load(sin + angle + half, mask=real, other=0.0),
    )
    tl.store(target + at, first_turned, mask=real)
    tl.store(target + half + at, second_turned, mask=real)


@triton.jit
def _turned(one: tl.tensor, cos: tl.tensor, other: tl.tensor, sin: tl.tensor) -> tl.tensor:
    """``one * cos + other * sin``, each rounded."""
    straight = (one.to(tl.float32) * cos.to(tl.float32)).to(one.dtype)
    across = (other.to(tl.float32) * sin.to(tl.float32)).to(one.dtype)
    return (straight.to(tl.float32) + across.to(tl.float32)).to(one.dtype)
