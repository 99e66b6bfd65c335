"""The parts ``peers`` and ``ablation``: the engine against transformers, and against itself without each trick."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from asyncgen.backends.sampling import Sampler
from asyncgen.backends.slots.gpu.opening import Means
from benchmarks.on_gpu import peers as others
from benchmarks.on_gpu.card import Card
from benchmarks.on_gpu.check import engine
from benchmarks.on_gpu.results import Results
from benchmarks.on_gpu.scale import Scale, bounded, card_of
from benchmarks.on_gpu.steps import step_times

__all__ = ["ablation", "peers"]

TIMES = {"generate": 10.0, "generate_batch": 3.0}
"""How many times as fast the engine is to be."""


def peers(results: Results, scale: Scale, device: torch.device, means: Callable[[], Means | None]) -> None:
    """Ours, ``generate`` in batches of several sizes, ours again, ``generate_batch``, ours again; in one process."""
    card = card_of(results, scale.small, scale, device, means)
    with engine(results, card, scale.main, "engine") as opened:
        if opened is None:
            return
        results.measure("warm-up", lambda: card.run(opened, scale.main), needs=15)
        first = results.found.get("warm-up")
        if first is None:
            return
        run = partial(card.run, opened, bounded(first, scale.peer_stories, 25))
        requests = others.requests_of(card, opened, scale.peer_requests)
        results.measure("ours, 1", run, needs=20)
        for number, rows in enumerate(scale.peer_rows):
            results.measure(f"generate, {rows} rows", partial(others.generate, card, requests, rows), needs=25)
            if number == len(scale.peer_rows) // 2:
                results.measure("ours, 2", run, needs=20)
            _ratios(results)
        sample = requests[: scale.batch_requests]
        limit = min(scale.batch_seconds, max(10.0, results.left - 40))
        results.measure(
            "generate_batch, bounded cache",
            lambda: others.generate_batch(card, sample, limit, **scale.batch_settings),
            needs=30,
        )
        _ratios(results)
        if scale.batch_defaults:
            later = min(scale.batch_seconds, max(10.0, results.left - 30))
            results.measure("generate_batch, defaults", lambda: others.generate_batch(card, sample, later), needs=30)
            _ratios(results)
        results.measure("ours, 3", run, needs=15)
    _ratios(results)


def _ratios(results: Results) -> None:
    found = results.found
    mine = sorted(found[name]["stories/min"] for name in ("ours, 1", "ours, 2", "ours, 3") if name in found)
    if not mine:
        return
    middle = mine[len(mine) // 2]
    tokens = statistics.median(found[name]["tokens/s"] for name in ("ours, 1", "ours, 2", "ours, 3") if name in found)
    ratios: dict[str, Any] = {"ours stories/min (least, middle, most)": [mine[0], middle, mine[-1]]}
    for peer, times in TIMES.items():
        rates = {
            name: each["stories/min"]
            for name, each in found.items()
            if name.startswith(f"{peer}, ") and each.get("stories/min")
        }
        if rates:
            best = max(rates, key=lambda name: rates[name])
            ratio = middle / rates[best]
            ratios[peer] = {
                "best": best,
                "stories/min": rates[best],
                "ours is times": round(ratio, 2),
                "goal": times,
                "by tokens/s": round(tokens / found[best]["tokens/s"], 2) if found[best]["tokens/s"] else None,
            }
            ratios[peer]["reached"] = ratio >= times
    results.keep("ratios", ratios)


def ablation(results: Results, scale: Scale, device: torch.device, means: Callable[[], Means | None]) -> None:
    """The full engine, one without a trick, the full one again, and so on; both are open at the same time."""
    card = card_of(results, scale.small, scale, device, means)
    longest = scale.sizes.longest + scale.sizes.shared + 4
    changes: dict[str, dict[str, Any]] = {
        "with compiled layers": {"compiled": True},
        "without shared prefixes": {"longest": longest},
        "without kernels between products": {"pointwise": None},
        "without fused products": {"fused": False},
        "a step a group": {"steps": 1},
        "torch's sampler": {"sampler": Sampler},
        "without captured passes": {"captured": False},
    }
    with engine(results, card, scale.main, "engine") as full:
        if full is None:
            return
        results.measure("warm-up", lambda: card.run(full, scale.main), needs=15)
        first = results.found.get("warm-up")
        if first is None:
            return
        stories = bounded(first, scale.ablation_stories, 15)
        results.measure("full, 0: steps", lambda: step_times(card, full, groups=scale.groups))
        results.measure("full, 0", lambda: card.run(full, stories), needs=15)
        wanted = {name: change for name, change in changes.items() if name.startswith(scale.tricks or "")}
        for number, (name, change) in enumerate(wanted.items(), 1):
            needs = 100.0 if "compiled" in name else 45.0
            if "compiled" in name and device.type == "cpu":
                continue
            if results.done(name) or (results.left < needs and device.type == "cuda"):
                results.measure(name, dict, needs=needs)
                continue
            _without(results, card, scale, name, change, stories)
            results.measure(f"full, {number}", lambda: card.run(full, stories), needs=10)
            _gains(results, list(wanted))


def _without(results: Results, card: Card, scale: Scale, name: str, change: dict[str, Any], stories: int) -> None:
    with engine(results, card, scale.main, f"engine {name}", **change) as other:
        if other is not None:
            sharing = "longest" not in change
            if sharing:
                results.measure(f"{name}: steps", lambda: step_times(card, other, groups=scale.groups))
            results.measure(name, lambda: card.run(other, stories, sharing=sharing))


def _gains(results: Results, names: list[str]) -> None:
    """What each trick is worth: the mean of the full engine's runs before and after, over the run without it."""
    found, gains = results.found, {}
    for number, name in enumerate(names, 1):
        around = [found[f"full, {place}"] for place in (number - 1, number) if f"full, {place}" in found]
        if name in found and around and found[name].get("stories/min"):
            gains[name] = {
                key: round(sum(each[key] for each in around) / len(around) / found[name][key], 3)
                for key in ("stories/min", "steady stories/min")
                if found[name].get(key)
            }
    results.keep("the full engine is times as fast as", gains)
