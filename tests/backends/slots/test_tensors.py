"""A step's tensor functions against float64, with NaN in every cell and buffer that is not a row's own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asyncgen.backends.slots.attention import Partials
from asyncgen.backends.slots.cache import PAGE, Cache, LayerShape, pages_for
from asyncgen.backends.slots.passes import Decode, Prefill, Prefix
from tests.backends.slots.play import Part, Stage, alone
from tests.backends.slots.test_sameness import PARTS, solo, subject

CPU = torch.device("cpu")
EDGES = (1, 2, 63, 64, 65, 127, 128, 129)
CLOSE = {torch.float32: 4e-6, torch.bfloat16: 3e-2}

groups = st.sampled_from([(4, 4), (4, 2), (7, 1), (8, 1)])
dtypes = st.sampled_from([torch.float32, torch.bfloat16])
prefixes = st.lists(st.integers(1, 150), max_size=2)
lengths = st.lists(st.sampled_from(EDGES), min_size=1, max_size=20)


def exact(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention [T, H, D] of the last T of L tokens, keys and values [L, KV, D], over those up to each; float64."""
    heads, kv_heads = queries.shape[1], keys.shape[1]
    keys, values = (each.double().repeat_interleave(heads // kv_heads, dim=1) for each in (keys, values))
    scores = torch.einsum("thd,lhd->htl", queries.double(), keys)
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1 + scores.shape[-1] - scores.shape[-2])
    return torch.einsum("htl,lhd->thd", scores.masked_fill(later, -torch.inf).softmax(-1), values)


def check(found: Tensor, expected: Tensor) -> None:
    assert not found.isnan().any()
    assert (found.double() - expected).abs().max() <= CLOSE[found.dtype] * max(1.0, float(expected.abs().max()))


class Making:
    """Random tensors, and prefixes made of them."""

    def __init__(self, heads: tuple[int, int], dtype: torch.dtype, seed: int) -> None:
        self.layer = LayerShape(*heads, 12, 12)
        self.dtype = dtype
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(self.dtype)

    def queries(self, tokens: int) -> Tensor:
        """Scaled."""
        scale: float = self.layer.key_size**-0.5
        return self(tokens, self.layer.heads, self.layer.key_size) * scale

    def keys(self, tokens: int) -> Tensor:
        return self(tokens, self.layer.kv_heads, self.layer.key_size)

    def values(self, tokens: int) -> Tensor:
        return self(tokens, self.layer.kv_heads, self.layer.value_size)

    def prefix(self, tokens: int) -> Prefix:
        keys, values = (each.transpose(0, 1)[None].contiguous() for each in (self.keys(tokens), self.values(tokens)))
        return Prefix((0,) * tokens, [keys], [values])


def packed(prefix: Prefix | None, own: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if prefix is None:
        return own
    beginning = [each[0][0].transpose(0, 1) for each in (prefix.keys, prefix.values)]
    return torch.cat([beginning[0], own[0]]), torch.cat([beginning[1], own[1]])


def poisoned(cache: Cache, room: Partials) -> None:
    """NaN wherever nothing is that anybody is promised."""
    for pool in (*cache.keys, *cache.values, cache.bias):
        pool[1:] = torch.nan
    for buffer in (room.scores, room.weights, room.out[:-1], room.top[:-1], room.mass[:-1]):
        buffer.fill_(torch.nan)


@given(heads=groups, dtype=dtypes, tokens=lengths, beginnings=prefixes, seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_a_token_attends_to_its_own_and_its_prefix(
    heads: tuple[int, int], dtype: torch.dtype, tokens: list[int], beginnings: list[int], seed: int
) -> None:
    """``tokens``: what each row has, the new one included; every third row's page is followed by one of nobody."""
    make = Making(heads, dtype, seed)
    layer, lanes = make.layer, -(-len(tokens) // 16) * 16
    cache = Cache([layer], 128, dtype, CPU)
    room = Partials.room(layer, 128, dtype, CPU)
    poisoned(cache, room)
    shared = [make.prefix(count) for count in beginnings]
    whose = [[*shared, None][row % (len(shared) + 1)] for row in range(len(tokens))]
    own = [(make.keys(count), make.values(count)) for count in tokens]
    pages: list[list[int]] = [[] for _ in tokens]
    gone = []
    for turn in range(max(map(pages_for, tokens))):  # rows take their pages in turn
        for row, count in enumerate(tokens):
            if turn < pages_for(count):
                pages[row].append(cache.take(row))
                if (row + turn) % 3 == 0:
                    gone.append(cache.take(99))
    for page in gone:
        cache.keys[0][page], cache.values[0][page] = torch.nan, torch.nan
    cache.release(gone, 0)
    for row, count in enumerate(tokens):
        at = torch.tensor([pages[row][token // PAGE] for token in range(count)])
        offsets = torch.arange(count) % PAGE
        old = slice(0, count - 1)  # the newest is written by the pass
        cache.write(0, at[old], offsets[old], own[row][0][old], own[row][1][old])
        cache.bias[at, 0, offsets] = 0

    table = torch.full((lanes, max(map(len, pages))), 128)
    table[:, 0] = 0
    for row, taken in enumerate(pages):
        table[row, : len(taken)] = torch.tensor(taken)
    newest = torch.tensor([count - 1 for count in tokens] + [0] * (lanes - len(tokens)))
    of_slot = torch.zeros(101, dtype=torch.int64)
    of_slot[: len(tokens)] = torch.arange(len(tokens))
    used = []
    for prefix in shared:
        members = [row for row, each in enumerate(whose) if each is prefix]
        if members:
            used.append((prefix, torch.tensor(members + members[:1] * (-len(members) % 16))))
    run = Decode(
        cache,
        [room],
        pages=table.gather(1, newest[:, None] // PAGE)[:, 0],
        offsets=newest % PAGE,
        table=table,
        owners=of_slot[cache.owners[: cache.pages.region]],
        prefixes=used,
    )
    queries = make.queries(lanes)
    last = [torch.stack([own[row][kind][-1] for row in range(len(tokens))]) for kind in (0, 1)]
    fill = [last[kind][:1].expand(lanes - len(tokens), -1, -1) for kind in (0, 1)]
    found = run.attend(queries, torch.cat([last[0], fill[0]]), torch.cat([last[1], fill[1]]), 1.0)
    for row in range(len(tokens)):
        check(found[row : row + 1], exact(queries[row : row + 1], *packed(whose[row], own[row])))


@given(
    heads=groups,
    dtype=dtypes,
    tokens=st.lists(st.sampled_from(EDGES), min_size=1, max_size=6),
    beginning=st.none() | st.integers(1, 150),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=40)
def test_prompts_attend_to_themselves_and_their_prefix(
    heads: tuple[int, int], dtype: torch.dtype, tokens: list[int], beginning: int | None, seed: int
) -> None:
    make = Making(heads, dtype, seed)
    prefix = None if beginning is None else make.prefix(beginning)
    total = sum(tokens)
    queries = make.queries(total)
    keys, values = make.keys(total), make.values(total)

    def filled(each: Tensor) -> Tensor:
        return torch.cat([each, torch.full((-total % 16, *each.shape[1:]), torch.nan, dtype=dtype)])

    found = Prefill(tokens, prefix, CPU).attend(filled(queries), filled(keys), filled(values), 1.0)[:total]
    for mine, q, k, v in zip(*(torch.split(each, tokens) for each in (found, queries, keys, values)), strict=True):
        check(mine, exact(q, *packed(prefix, (k, v))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_what_lies_in_buffers_and_in_pages_of_nobody_is_never_seen(dtype: torch.dtype) -> None:
    stage = Stage(*subject("grouped", dtype), 8)
    decoder = stage.decoder

    def poison() -> None:
        free = [page for page in range(1, decoder.cache.pages.count) if decoder.cache.pages.owners[page] < 0]
        for pool in (*decoder.cache.keys, *decoder.cache.values, decoder.cache.bias):
            pool[free] = torch.nan
        for room in decoder._rooms:
            for buffer in (room.scores, room.weights, room.out[:-1], room.top[:-1], room.mass[:-1]):
                buffer.fill_(torch.nan)
        for buffer in decoder._sampler.buffers.values():
            buffer.fill_(torch.nan)

    for part in PARTS:
        poison()
        while not decoder.free:
            decoder.step()
            poison()
        stage.admit([part])
    while decoder.live:
        poison()
        decoder.step()
    for index, heard in stage.heard.items():
        assert not heard.broken
        assert len(heard.tokens) == PARTS[index].count
        assert dtype is torch.bfloat16 or heard.same(solo("grouped", index))


@torch.inference_mode()
def test_later_rows_never_see_what_a_broken_one_left() -> None:
    """In its slot, on its pages, and beside it."""
    loaded, layers = subject("grouped")
    weight = loaded.model.get_input_embeddings().weight
    saved = weight[299].clone()

    def clean(part: Part) -> bool:
        return 299 not in (*part.prefix, *part.own)

    parts: Sequence[Part] = [part for part in PARTS if clean(part)]
    expected = {part.index: alone(loaded, layers, part) for part in parts}
    stage = Stage(loaded, layers, 4)
    weight[299] = torch.nan
    try:
        for number, part in enumerate(parts):
            while stage.decoder.free < 2:
                stage.decoder.step()
            stage.admit([Part(1000 + number, (*part.own[:100], 299), 9)])
            stage.admit([part])
        stage.finish()
    finally:
        weight[299] = saved
    for index, heard in stage.heard.items():
        if index >= 1000:
            assert heard.broken
        elif 299 not in expected[index].tokens:
            assert heard.same(expected[index])
