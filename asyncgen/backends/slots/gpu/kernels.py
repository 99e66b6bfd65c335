"""The kernels of ``TritonAttention``: what runs for one tile or one slot, and one key head.

All are one loop: blocks of keys in the order of their tokens, of which each row keeps the largest score so far, the
mass (the sum of the exponentials of scores less that largest one) and the values weighted by them, in float32 (online
softmax: Milakov and Gimelshein 2018; in blocks: Dao et al. 2022). Scores are to the base 2: ``scale`` comes multiplied
by log2(e), and a logarithm that is handed from kernel to kernel is to the base 2 as well.

Rows are slots or tokens times the query heads of a group: row r is head ``r % heads`` of slot or token ``r // heads``.
``heads``, a power of two, is as many of a group as a program takes; a group that has more is taken in several parts,
one that has fewer leaves rows empty. What a row gets is a function of its own query and of the keys it may see: their
blocks begin at fixed places, there are no atomics, and no keys are split over programs. Empty rows compute with zeros,
and nothing of them is written; cells behind a length, and what fills ``size`` up to ``width``, a power of two, are
neither read nor written.

Pointers that are not to queries, keys, values or results are to int32, but for ``live``, which is to bool. ``page`` is
the number of a page's cells, ``page_stride`` the elements from one page to the next; a key head's cells
[page, size] are contiguous in a page. Page numbers are multiplied in int64, and so are places of tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["decode_own", "decode_prefix", "prefill"]

_INDICES = ["live", "lengths", "table", "prefix", "tile_prefix", "tile_slots", "shared_table", "shared_lengths"]
_PACKED = ["tile_start", "tile_first", "tile_end", "pages", "offsets", "prefix", "shared_table", "shared_lengths"]
_PACKED += ["earlier", "earlier_length"]
_WIDTHS = ["table_stride", "shared_stride"]
"""What no kernel is compiled anew for: where a table lies, and how wide it is, decides nothing about its speed, and
there is no compiling while a graph is captured."""


@triton.jit
def _nothing(rows: tl.constexpr, width: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The state (top [rows], mass [rows], sums [rows, width]) of rows that have seen no key."""
    top = tl.full((rows,), float("-inf"), tl.float32)
    mass = tl.full((rows,), 0.0, tl.float32)
    sums = tl.full((rows, width), 0.0, tl.float32)
    return top, mass, sums


@triton.jit
def _absorb(
    top: tl.tensor,
    mass: tl.tensor,
    sums: tl.tensor,
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    seen: tl.tensor,
    scale: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The state after one more block of keys and values [block, width], of which a row sees those that ``seen``
    [1 or rows, block] says: each row one of them at least, in its first block.
    """
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
    scores = tl.where(seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores - new_top[:, None])
    fading = tl.exp2(top - new_top)
    mass = mass * fading + tl.sum(weights, 1)
    sums = tl.dot(weights.to(values.dtype), values, sums * fading[:, None], input_precision="ieee")
    return new_top, mass, sums


@triton.jit
def _absorb_pages(
    top: tl.tensor,
    mass: tl.tensor,
    sums: tl.tensor,
    queries: tl.tensor,
    pool_keys: tl.tensor,
    pool_values: tl.tensor,
    table: tl.tensor,
    length: tl.tensor,
    page_stride: tl.tensor,
    scale: tl.tensor,
    page: tl.constexpr,
    block: tl.constexpr,
    size: tl.constexpr,
    width: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The state after ``length`` tokens in the pages that ``table`` names; pool pointers are to the key head's cells
    in page 0. A block lies in one page.
    """
    cells = tl.arange(0, block)
    dims = tl.arange(0, width)
    places = cells[:, None] * size + dims[None, :]
    for begin in range(0, length, block):
        number = tl.load(table + begin // page).to(tl.int64)
        base = number * page_stride + (begin % page) * size
        seen = cells < length - begin
        there = seen[:, None] & (dims < size)[None, :]
        keys = tl.load(pool_keys + base + places, mask=there, other=0.0)
        values = tl.load(pool_values + base + places, mask=there, other=0.0)
        top, mass, sums = _absorb(top, mass, sums, queries, keys, values, seen[None, :], scale)
    return top, mass, sums


@triton.jit(do_not_specialize=_WIDTHS, do_not_specialize_on_alignment=_INDICES)
def decode_prefix(
    queries: tl.tensor,
    pool_keys: tl.tensor,
    pool_values: tl.tensor,
    prefix_out: tl.tensor,
    prefix_lse: tl.tensor,
    tile_prefix: tl.tensor,
    tile_slots: tl.tensor,
    shared_table: tl.tensor,
    shared_lengths: tl.tensor,
    query_stride: tl.tensor,
    page_stride: tl.tensor,
    shared_stride: tl.tensor,
    scale: tl.tensor,
    group: tl.constexpr,
    heads: tl.constexpr,
    parts: tl.constexpr,
    slots: tl.constexpr,
    rows: tl.constexpr,
    page: tl.constexpr,
    block: tl.constexpr,
    size: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Program (tile, key head and part of its group): attention of the tile's ``slots`` over their prefix.

    Writes ``prefix_out`` float32 [S, H, size] and ``prefix_lse`` float32 [S, H].
    """
    tile = tl.program_id(0)
    kv = tl.program_id(1) // parts
    part = tl.program_id(1) % parts
    query_heads = tl.num_programs(1) // parts * group
    prefix = tl.load(tile_prefix + tile)
    if prefix < 0:
        return
    row = tl.arange(0, rows)
    dims = tl.arange(0, width)
    head = part * heads + row % heads
    place = row // heads
    slot = tl.load(tile_slots + tile * slots + place, mask=place < slots, other=-1).to(tl.int64)
    used = (slot >= 0) & (head < group)
    head += kv * group
    there = used[:, None] & (dims < size)[None, :]
    at = (slot * query_stride + head * size)[:, None] + dims[None, :]
    query = tl.load(queries + at, mask=there, other=0.0)
    length = tl.load(shared_lengths + prefix)
    head_keys = pool_keys + kv * page * size
    head_values = pool_values + kv * page * size
    shared = shared_table + prefix.to(tl.int64) * shared_stride
    top, mass, sums = _nothing(rows, width)
    top, mass, sums = _absorb_pages(
        top, mass, sums, query, head_keys, head_values, shared, length, page_stride, scale, page, block, size, width
    )
    # An empty prefix has no mass, and its logarithm, -inf, gives it no weight: but 0 times 0/0 is not 0.
    out = sums / tl.where(mass > 0, mass, 1.0)[:, None]
    result = slot * query_heads + head
    tl.store(prefix_lse + result, top + tl.log2(mass), mask=used)
    tl.store(prefix_out + (result * size)[:, None] + dims[None, :], out, mask=there)


@triton.jit(do_not_specialize=_WIDTHS, do_not_specialize_on_alignment=_INDICES)
def decode_own(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    pool_keys: tl.tensor,
    pool_values: tl.tensor,
    out: tl.tensor,
    prefix_out: tl.tensor,
    prefix_lse: tl.tensor,
    live: tl.tensor,
    lengths: tl.tensor,
    table: tl.tensor,
    prefix: tl.tensor,
    query_stride: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    page_stride: tl.tensor,
    table_stride: tl.tensor,
    scale: tl.tensor,
    group: tl.constexpr,
    rows: tl.constexpr,
    page: tl.constexpr,
    block: tl.constexpr,
    size: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Program (slot, key head): what ``decode_prefix`` left, then the token itself, then the row's own tokens.

    Writes ``out`` [S, H, size], and the token's key and value to the row's next cell: the one cell of the row's pages
    that no loop here reads.
    """
    slot = tl.program_id(0).to(tl.int64)
    kv = tl.program_id(1)
    head = tl.arange(0, rows)
    dims = tl.arange(0, width)
    used = head < group
    real = dims < size
    there = used[:, None] & real[None, :]
    first = kv * group
    result = slot * (tl.num_programs(1) * group) + first
    at = (head * size)[:, None] + dims[None, :]
    if tl.load(live + slot) == 0:
        tl.store(out + result * size + at, tl.full((rows, width), 0.0, out.dtype.element_ty), mask=there)
        return
    query = tl.load(queries + slot * query_stride + first * size + at, mask=there, other=0.0)
    key = tl.load(keys + slot * key_stride + kv * size + dims, mask=real, other=0.0)
    value = tl.load(values + slot * value_stride + kv * size + dims, mask=real, other=0.0)
    length = tl.load(lengths + slot)
    mine = table + slot * table_stride

    cell = tl.load(mine + length // page).to(tl.int64) * page_stride + (kv * page + length % page) * size + dims
    tl.store(pool_keys + cell, key, mask=real)
    tl.store(pool_values + cell, value, mask=real)

    behind = tl.load(prefix + slot) >= 0  # of those that have no prefix, the place for its result was never written
    top = tl.load(prefix_lse + result + head, mask=used & behind, other=float("-inf"))
    mass = tl.where(top > float("-inf"), 1.0, 0.0)
    sums = tl.load(prefix_out + result * size + at, mask=there & behind, other=0.0)

    score = tl.sum(query.to(tl.float32) * key.to(tl.float32)[None, :], 1) * scale
    new_top = tl.maximum(top, score)
    weight = tl.exp2(score - new_top)
    fading = tl.exp2(top - new_top)
    mass = mass * fading + weight
    sums = sums * fading[:, None] + weight[:, None] * value.to(tl.float32)[None, :]

    head_keys = pool_keys + kv * page * size
    head_values = pool_values + kv * page * size
    top, mass, sums = _absorb_pages(
        new_top, mass, sums, query, head_keys, head_values, mine, length, page_stride, scale, page, block, size, width
    )
    tl.store(out + result * size + at, (sums / mass[:, None]).to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=_WIDTHS, do_not_specialize_on_alignment=_PACKED)
def prefill(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    pool_keys: tl.tensor,
    pool_values: tl.tensor,
    out: tl.tensor,
    tile_start: tl.tensor,
    tile_first: tl.tensor,
    tile_end: tl.tensor,
    pages: tl.tensor,
    offsets: tl.tensor,
    prefix: tl.tensor,
    shared_table: tl.tensor,
    shared_lengths: tl.tensor,
    earlier: tl.tensor,
    earlier_length: tl.tensor,
    query_stride: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    page_stride: tl.tensor,
    shared_stride: tl.tensor,
    scale: tl.tensor,
    group: tl.constexpr,
    heads: tl.constexpr,
    parts: tl.constexpr,
    tokens: tl.constexpr,
    rows: tl.constexpr,
    page: tl.constexpr,
    block: tl.constexpr,
    size: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Program (tile, key head and part of its group): the prefix, earlier tokens, then the prompt's own.

    Writes the tile's rows of ``out`` [T, H, size], and its keys and values to the cells that are theirs. Own keys are
    read from ``keys`` and ``values``: other programs are still writing them to the cache.
    """
    tile = tl.program_id(0)
    kv = tl.program_id(1) // parts
    part = tl.program_id(1) % parts
    query_heads = tl.num_programs(1) // parts * group
    start = tl.load(tile_start + tile)
    if start < 0:
        return
    first = tl.load(tile_first + tile)
    end = tl.load(tile_end + tile)
    dims = tl.arange(0, width)
    real = (dims < size)[None, :]

    if part == 0:
        written = start + tl.arange(0, tokens)
        mine = written < end
        numbers = tl.load(pages + written, mask=mine, other=0).to(tl.int64)
        cells = tl.load(offsets + written, mask=mine, other=0)
        to = (numbers * page_stride + (kv * page + cells) * size)[:, None] + dims[None, :]
        there = mine[:, None] & real
        source = kv * size + dims[None, :]
        token = written.to(tl.int64)[:, None]
        tl.store(pool_keys + to, tl.load(keys + token * key_stride + source, mask=there, other=0.0), mask=there)
        tl.store(pool_values + to, tl.load(values + token * value_stride + source, mask=there, other=0.0), mask=there)

    row = tl.arange(0, rows)
    head = part * heads + row % heads
    token = row // heads
    used = (token < tokens) & (head < group) & (start + token < end)
    head += kv * group
    token += start
    there = used[:, None] & real
    at = (token.to(tl.int64) * query_stride + head * size)[:, None] + dims[None, :]
    query = tl.load(queries + at, mask=there, other=0.0)

    head_keys = pool_keys + kv * page * size
    head_values = pool_values + kv * page * size
    top, mass, sums = _nothing(rows, width)
    number = tl.load(prefix)
    length = tl.load(shared_lengths + number, mask=number >= 0, other=0)
    shared = shared_table + number.to(tl.int64) * shared_stride
    top, mass, sums = _absorb_pages(
        top, mass, sums, query, head_keys, head_values, shared, length, page_stride, scale, page, block, size, width
    )
    length = tl.load(earlier_length)
    top, mass, sums = _absorb_pages(
        top, mass, sums, query, head_keys, head_values, earlier, length, page_stride, scale, page, block, size, width
    )

    columns = tl.arange(0, block)
    first_key = keys + first.to(tl.int64) * key_stride + kv * size
    first_value = values + first.to(tl.int64) * value_stride + kv * size
    reach = tl.minimum(start + tokens, end) - first
    for begin in range(0, reach, block):
        column = begin + columns
        far = column.to(tl.int64)[:, None]
        there_too = (column < reach)[:, None] & real
        block_keys = tl.load(first_key + far * key_stride + dims[None, :], mask=there_too, other=0.0)
        block_values = tl.load(first_value + far * value_stride + dims[None, :], mask=there_too, other=0.0)
        seen = column[None, :] <= (token - first)[:, None]
        top, mass, sums = _absorb(top, mass, sums, query, block_keys, block_values, seen, scale)

    result = (token.to(tl.int64) * query_heads + head) * size
    tl.store(out + result[:, None] + dims[None, :], (sums / mass[:, None]).to(out.dtype.element_ty), mask=there)
