"""Single operations, timed on the device: attention, products, sampling. What the engine is made of, against what
torch has.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from asyncgen.backends.sampling_parameters import Needs, SamplingParameters
from asyncgen.backends.slots.gpu.lanes import Attention
from asyncgen.records import Sampling
from benchmarks.on_gpu.device import seconds_of
from benchmarks.on_gpu.kinds import Kind
from benchmarks.on_gpu.scenes import Heads, Scene, decoding, packing

__all__ = ["attention_times", "bandwidth", "product_times", "sampler_times", "torch_attention_times"]

OWN = (60, 240)
COPIES = 4
"""Pools that are read in turn, as the layers of a model are: one alone might stay in the cache."""


def _in_turn(scenes: Sequence[Scene], attention: Attention) -> Callable[[], object]:
    turn = cycle(scenes)
    return lambda: next(turn).call(attention)


def attention_times(attention: Attention, heads: Heads, slots: int, *, prefix: int, **on: Any) -> dict[str, Any]:
    """A step's attention over own tokens with a shared prefix and without it; bytes are those of keys and values."""
    found: dict[str, Any] = {}
    for name, prefixes in (("with prefix", (prefix,)), ("own only", ())):
        scenes = [
            decoding(heads, slots, prefixes=prefixes, own=OWN, seed=seed, empty=0.0, alone=0.0, **on)
            for seed in range(COPIES)
        ]
        lanes = scenes[0].lanes
        assert lanes is not None
        tokens = int(lanes.lengths.sum()) + slots
        size = (tokens + sum(prefixes)) * 2 * heads.kv * heads.size * scenes[0].queries.itemsize
        seconds = seconds_of(_in_turn(scenes, attention), on["device"], calls=COPIES * 4)
        found[name] = {"us": round(1e6 * seconds, 2), "GB/s": round(size / seconds / 1e9, 1)}
        del scenes
    return found


def prefill_times(attention: Attention, heads: Heads, tokens: int, *, prefix: int, **on: Any) -> dict[str, Any]:
    """Attention of packed prompts of about 60 tokens behind the prefix."""
    chance = random.Random(4)
    lengths: list[int] = []
    while sum(lengths) + 80 <= tokens:
        lengths.append(chance.randint(40, 80))
    scenes = [packing(heads, tokens, prefix=prefix, lengths=lengths or [tokens], seed=seed, **on) for seed in range(2)]
    seconds = seconds_of(_in_turn(scenes, attention), on["device"], calls=8)
    seen = sum(n * prefix + n * n / 2 for n in lengths)
    return {"us": round(1e6 * seconds, 2), "TFLOP/s": round(4 * heads.queries * heads.size * seen / seconds / 1e12, 1)}


def torch_attention_times(
    heads: Heads, slots: int, *, prefix: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """The same by torch's own flash attention (a private operator): rows in cells of their own, and the prefix by
    another call, which gives the logarithms that the two are merged by. Merging is not in it. Raises what torch does.
    """
    flash: Any = torch.ops.aten._flash_attention_forward  # noqa: SLF001  # there is no public one with lengths in 2.11
    room = 320
    torch.manual_seed(0)
    chance = random.Random(0)
    lengths = [chance.randint(*OWN) + 1 for _ in range(slots)]

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    queries = some(slots, heads.queries, heads.size)
    caches = [
        (some(slots * room, heads.kv, heads.size), some(slots * room, heads.kv, heads.size)) for _ in range(COPIES)
    ]
    first = some(prefix, heads.kv, heads.size), some(prefix, heads.kv, heads.size)
    starts = torch.arange(slots + 1, dtype=torch.int32, device=device)
    used = torch.tensor(lengths, dtype=torch.int32, device=device)
    ends = torch.tensor([0, slots], dtype=torch.int32, device=device)
    prefix_ends = torch.tensor([0, prefix], dtype=torch.int32, device=device)
    turn = cycle(caches)

    def own() -> Tensor:
        keys, values = next(turn)
        given = (queries, keys, values, starts, starts * room, 1, room, 0.0, False, False)
        found: Tensor = flash(*given, scale=heads.size**-0.5, seqused_k=used)[0]
        return found

    def shared() -> Tensor:
        given = (queries, *first, ends, prefix_ends, slots, prefix, 0.0, False, False)
        found: Tensor = flash(*given, scale=heads.size**-0.5)[0]
        return found

    keys, values = caches[0]
    place, length = slots // 2, lengths[slots // 2]
    cells = slice(place * room, place * room + length)
    turn = cycle(caches)
    query = queries[place].double().view(heads.kv, heads.group, -1)
    scores = torch.einsum("kgd,nkd->kgn", query, keys[cells].double()) * heads.size**-0.5
    expected = torch.einsum("kgn,nkd->kgd", scores.softmax(-1), values[cells].double()).flatten(0, 1)
    error = float((own()[place].double() - expected).norm() / expected.norm())
    seconds, over_prefix = (seconds_of(call, device, calls=COPIES * 4) for call in (own, shared))
    size = sum(lengths) * 2 * heads.kv * heads.size * queries.itemsize
    return {
        "own only": {"us": round(1e6 * seconds, 2), "GB/s": round(size / seconds / 1e9, 1)},
        "prefix us": round(1e6 * over_prefix, 2),
        "relative error": float(f"{error:.3g}"),
    }


def product_times(kind: Kind, rows: Sequence[int], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """TFLOP/s of each matrix product by the number of rows, weights in turn so that they come from memory."""
    found: dict[str, Any] = {}
    for name, (outputs, inputs) in kind.products.items():
        copies = max(2, min(8, int(3e8 // (outputs * inputs * 2))))
        weights = [torch.randn(outputs, inputs, device=device).mul_(inputs**-0.5).to(dtype) for _ in range(copies)]
        rates = {}
        for count in rows:
            some = torch.randn(count, inputs, device=device).to(dtype)
            turn = cycle(weights)
            seconds = seconds_of(lambda: nn.functional.linear(some, next(turn)), device, calls=8, rounds=3)  # noqa: B023  # called at once
            rates[str(count)] = {
                "us": round(1e6 * seconds, 2),
                "TFLOP/s": round(2 * count * outputs * inputs / seconds / 1e12, 1),
            }
        found[name] = {"N": outputs, "K": inputs} | rates
        del weights
    return found


def sampler_times(
    make: Callable[[int, int, torch.device], Any], kind: Kind, rows: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """A step's sampling, by what the rows ask for."""
    found = {}
    logits = (torch.randn(rows, kind.vocabulary, device=device) * 4).to(dtype)
    seeds, drawn = torch.arange(rows, device=device), torch.full((rows,), 7, device=device)
    kinds = {"temperature": Sampling(0.8), "top-k 50": Sampling(0.8, top_k=50), "top-p 0.95": Sampling(0.8, top_p=0.95)}
    sampler = make(rows, kind.vocabulary, device)
    for name, sampling in {"greedy": Sampling(0.0), **kinds}.items():
        parameters, needs = SamplingParameters.of([sampling] * rows, device), Needs.of([sampling])
        if needs.largest_k:
            needs = Needs(needs.sampled, 64, needs.top_p, needs.min_p, needs.penalty, needs.logprobs)
        with torch.inference_mode():
            seconds = seconds_of(
                lambda: sampler.pick(logits, seeds, drawn, parameters, needs, None),  # noqa: B023  # called at once
                device,
                calls=4,
                rounds=3,
            )
        found[name] = {
            "us": round(1e6 * seconds, 1),
            "passes over the logits at 4.3 TB/s": round(seconds * 4.3e12 / logits.nbytes, 2),
        }
    return found


def bandwidth(device: torch.device) -> dict[str, float]:
    """What this device does at best, of large copies and products: the two numbers of the roofline, measured."""
    size = 2**31 if device.type == "cuda" else 2**22
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    copying = seconds_of(lambda: target.copy_(source), device, calls=4)
    side = 8192 if device.type == "cuda" else 128
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    multiplying = seconds_of(lambda: one @ other, device, calls=4)
    return {
        "copy TB/s": round(2 * size / copying / 1e12, 3),
        "product TFLOP/s": round(2 * side**3 / multiplying / 1e12, 1),
    }
