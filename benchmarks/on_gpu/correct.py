"""Whether what is computed is right: attention against float64, the engine against the model, bits against bits."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from asyncgen.backends.slots.gpu.lanes import Attention
from asyncgen.records import Prompt, Sampling
from benchmarks.on_gpu.card import Card, Opened
from benchmarks.on_gpu.kinds import Kind
from benchmarks.on_gpu.scenes import Heads, Scene, decoding, packing

__all__ = [
    "Wrong",
    "attention_is_right",
    "greedy_is_right",
    "products_are_steady",
    "rows_are_the_same",
    "slots_are_alike",
]

LIMITS = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Largest ||out - reference|| / ||reference||."""


class Wrong(Exception):
    """Something is computed that is not what it should be; the message says what, and by how much."""


def attention_is_right(
    attention: Attention, kinds: Sequence[Heads], *, slots: int, tokens: int, rounds: int, **on: Any
) -> dict[str, Any]:
    """Fresh random inputs each round. ``on``: dtype and device. Raises Wrong."""
    worst: dict[str, float] = {}
    for heads in kinds:
        for seed in range(rounds):
            for name, scene in _scenes(heads, slots, tokens, seed, **on):
                error = _compared(scene, attention, f"{name}, {heads}")
                key = f"{name}, group of {heads.group}"
                worst[key] = max(worst.get(key, 0.0), error)
    return {"largest relative error": {key: float(f"{value:.3g}") for key, value in worst.items()}, "rounds": rounds}


def _scenes(heads: Heads, slots: int, tokens: int, seed: int, **on: Any) -> list[tuple[str, Scene]]:
    chance = random.Random(seed)
    lengths, left = [], tokens - chance.randint(0, 20)
    while left > 0:
        lengths.append(min(left, chance.randint(1, 90)))
        left -= lengths[-1]
    some = {"seed": seed, **on}
    return [
        ("a step behind prefixes", decoding(heads, slots, prefixes=(500, 75), own=(1, 240), **some)),
        ("a step without prefixes", decoding(heads, slots, prefixes=(), own=(0, 200), **some)),
        ("prompts behind a prefix", packing(heads, tokens, prefix=chance.randint(60, 520), lengths=lengths, **some)),
        ("prompts without prefix", packing(heads, tokens, prefix=0, lengths=lengths, **some)),
        ("a long prompt's end", packing(heads, tokens, prefix=130, lengths=[tokens - 7], earlier=192, **some)),
    ]


def _compared(scene: Scene, attention: Attention, what: str) -> float:
    expected = scene.expected()
    before = [part.clone() for part in scene.pool]
    found = scene.call(attention)
    places = torch.tensor([place for _, first, place in scene.texts if first >= 0], device=found.device)
    mine, theirs = found[places].double(), expected[places]
    error = float((mine - theirs).norm() / theirs.norm())
    if not error <= LIMITS[found.dtype]:
        raise Wrong(f"{what}: off by {error:.3g} of the whole, {LIMITS[found.dtype]:g} are allowed")
    rows = (mine - theirs).flatten(1).norm(dim=-1) / theirs.flatten(1).norm(dim=-1)
    if not (row := float(rows.max())) <= 4 * LIMITS[found.dtype]:
        raise Wrong(f"{what}: a token is off by {row:.3g}")
    others = torch.tensor(
        [place for _, first, place in scene.texts if first < 0], dtype=torch.int64, device=found.device
    )
    if len(others) and not bool((found[others] == 0).all()):
        raise Wrong(f"{what}: what nobody asked for is not zero")
    pages, offsets, tokens = (torch.tensor(each, device=found.device) for each in zip(*scene.written, strict=True))
    for part, was, new in zip(scene.pool, before, (scene.keys, scene.values), strict=True):
        if not torch.equal(part[pages, :, offsets], new[tokens]):
            raise Wrong(f"{what}: keys or values are not where they belong")
        was[pages, :, offsets] = new[tokens]
        changed = (_bits(part) != _bits(was)).flatten(1).any(-1)
        changed[0] = False  # nobody's page
        if bool(changed.any()):
            raise Wrong(f"{what}: something else was written to page {int(changed.nonzero()[0])}")
    return error


def _bits(floats: Tensor) -> Tensor:
    """So that NaN equals itself."""
    return floats.view(torch.int16 if floats.itemsize == 2 else torch.int32)


def slots_are_alike(attention: Attention, heads: Heads, *, slots: int, **on: Any) -> dict[str, Any]:
    """Whether attention gives a row the same bits in another slot, with others beside it. Raises Wrong."""
    scene = decoding(heads, slots, prefixes=(500,), own=(1, 240), seed=5, empty=0.0, alone=0.0, **on)
    first = scene.copied().call(attention)
    assert scene.lanes is not None
    order = torch.randperm(slots, generator=torch.Generator().manual_seed(1)).to(first.device)
    lanes = scene.lanes
    moved = {name: getattr(lanes, name)[order].contiguous() for name in ("live", "lengths", "table", "prefix")}
    parts = {name: getattr(scene, name)[order].contiguous() for name in ("queries", "keys", "values")}
    second = replace(scene.copied(), lanes=replace(lanes, **moved), **parts).call(attention)
    apart = (_bits(first[order]) != _bits(second)).flatten(1).any(-1)
    if bool(apart.any()):
        raise Wrong(f"attention gives {int(apart.sum())} of {slots} rows other bits in another slot")
    return {"rows": slots, "rows with other bits": 0}


def products_are_steady(kind: Kind, rows: Sequence[int], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Of each product and number of rows, how many rows get other bits when all stand elsewhere, or have other
    neighbours. Names M, N and K of those that do; it is for the library to answer, so nothing is raised.
    """
    different, tried = [], 0
    for count in rows:
        for name, (outputs, inputs) in kind.products.items():
            torch.manual_seed(count)
            weight = torch.randn(outputs, inputs, device=device).mul_(inputs**-0.5).to(dtype)
            bias = torch.randn(outputs, device=device).to(dtype) if name[0] in "qk" else None
            some = torch.randn(count, inputs, device=device).to(dtype)
            order = torch.randperm(count, generator=torch.Generator().manual_seed(2)).to(device)
            whole = nn.functional.linear(some, weight, bias)
            moved = nn.functional.linear(some[order].contiguous(), weight, bias)
            beside = torch.randn_like(some)
            kept = torch.arange(0, count, 3, device=device)
            beside[kept] = some[kept]
            others = nn.functional.linear(beside, weight, bias)
            places = int((_bits(whole[order]) != _bits(moved)).any(-1).sum())
            neighbours = int((_bits(whole[kept]) != _bits(others[kept])).any(-1).sum())
            tried += 1
            if places or neighbours:
                shape: dict[str, Any] = {"product": f"{kind.name}: {name}", "M": count, "N": outputs, "K": inputs}
                rows_apart = {"rows that differ elsewhere": places, "beside others": neighbours, "of": count}
                different.append(shape | rows_apart)
            del weight
    return {"products": tried, "that depend on a row's place or neighbours": different}


def greedy_is_right(card: Card, opened: Opened, prompts: int, new: int) -> dict[str, Any]:
    """The likeliest tokens, by the engine and by ``generate``, after the same prompts: how far each token's logit is
    from the best, as float64 has it, for both. Raises Wrong if the engine is much farther off than ``generate`` is.
    """
    drawn = [_greedy(each, new) for each in card.prepared(opened, range(prompts))]
    said = card.tokens(opened, drawn)
    texts = [each.prepared.token_ids for each in drawn]
    with card.as_it_came() as model, torch.inference_mode():
        peers = [_generated(model, text, new, card.device) for text in texts]
        reference = copy.deepcopy(model).double()
        reference.set_attn_implementation("eager")
        ours = [_behind(reference, text, tokens, card.device) for text, tokens in zip(texts, said, strict=True)]
        theirs = [_behind(reference, text, tokens, card.device) for text, tokens in zip(texts, peers, strict=True)]
    del reference
    alike = sum(mine == other for mine, other in zip(said, peers, strict=True))
    mine, other = torch.cat(ours), torch.cat(theirs)
    found = {
        "prompts": prompts,
        "tokens": len(mine),
        "texts that equal generate's": alike,
        "behind the best logit, engine (mean, most)": [round(float(mine.mean()), 6), round(float(mine.max()), 6)],
        "behind the best logit, generate (mean, most)": [round(float(other.mean()), 6), round(float(other.max()), 6)],
    }
    floor = 1e-4 if card.loaded.model.dtype == torch.float32 else 2e-2
    if not (
        float(mine.mean()) <= 3 * float(other.mean()) + floor
        and float(mine.max()) <= 3 * float(other.max()) + 10 * floor
    ):
        raise Wrong(f"the engine is not as close to float64 as generate is: {found}")
    return found


def _greedy(prompt: Prompt, new: int) -> Prompt:
    return replace(prompt, sampling=Sampling(0.0), max_new_tokens=new)


def _generated(model: Any, text: Sequence[int], new: int, device: torch.device) -> tuple[int, ...]:
    ids = torch.tensor([text], device=device)
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
    return tuple(found[0, len(text) :].tolist())


def _behind(model: Any, text: Sequence[int], tokens: Sequence[int], device: torch.device) -> Tensor:
    """How far each token's logit is from the best one, in standard deviations of the logits: float64 [tokens]."""
    ids = torch.tensor([[*text, *tokens[:-1]]], device=device)
    logits = model(ids, use_cache=False).logits[0, len(text) - 1 :].double()
    chosen = logits.gather(-1, torch.tensor(tokens, device=device)[:, None])[:, 0]
    found: Tensor = ((logits.amax(-1) - chosen) / logits.std(-1)).cpu()
    return found


def rows_are_the_same(card: Card, opened: Opened, rows: int) -> dict[str, Any]:
    """The same prompts in order, shuffled among strangers, and the last part alone as after a resume. Raises Wrong."""
    prompts = card.prepared(opened, range(rows))
    first = card.tokens(opened, prompts)
    strangers = card.prepared(opened, range(rows, rows + max(1, rows // 5)))
    mixed = [*enumerate(prompts), *((-1, each) for each in strangers)]
    random.Random(3).shuffle(mixed)
    again = card.tokens(opened, [prompt for _, prompt in mixed])
    apart = [
        _difference("among strangers", place, first[place], tokens)
        for (place, _), tokens in zip(mixed, again, strict=True)
        if place >= 0 and tokens != first[place]
    ]
    start = rows * 3 // 5 + 1
    resumed = card.tokens(opened, prompts[start:])
    apart += [
        _difference("resumed", start + place, first[start + place], tokens)
        for place, tokens in enumerate(resumed)
        if tokens != first[start + place]
    ]
    found = {
        "rows": rows,
        "slots": opened.backend.limits.rows,
        "tokens": sum(map(len, first)),
        "fixed shapes": opened.fixed is not None,
        "different rows": len(apart),
        "some of them": apart[:10],
        "lengths as drawn": [len(each) for each in first] == [each.max_new_tokens for each in prompts],
        "different tokens in all rows": len({token for each in first for token in each}),
    }
    if apart:
        raise Wrong(f"rows are not the same: {found}")
    return found


def _difference(where: str, row: int, one: Sequence[int], other: Sequence[int]) -> dict[str, Any]:
    place = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return {"where": where, "row": row, "first different token": place, "of": len(one)}
