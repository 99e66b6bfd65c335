"""The parts ``3b`` and ``7b``: stories a minute through the whole pipeline, steps against their floor, idle time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter, sleep
from typing import Any

import torch

from asyncgen.backends.slots.gpu.opening import Means
from benchmarks.on_gpu.card import Card, Opened
from benchmarks.on_gpu.check import engine
from benchmarks.on_gpu.device import profiled
from benchmarks.on_gpu.idle import Interval
from benchmarks.on_gpu.kinds import H200
from benchmarks.on_gpu.results import Results
from benchmarks.on_gpu.scale import Scale, bounded, card_of
from benchmarks.on_gpu.steps import kernel_shares, step_times

__all__ = ["large", "small"]

IDLE_GOAL = 0.02
FOR_PROFILE = 60.0
"""Seconds that are kept for the profile."""


def small(results: Results, scale: Scale, device: torch.device, means: Callable[[], Means | None]) -> None:
    """The 3B shape."""
    _measure(results, scale, device, means, scale.small, scale.sweep, scale.long_run, scale.goals["small"])


def large(results: Results, scale: Scale, device: torch.device, means: Callable[[], Means | None]) -> None:
    """The 7B shape."""
    _measure(results, scale, device, means, scale.large, scale.large_sweep, scale.large_long_run, scale.goals["large"])


def _measure(
    results: Results,
    scale: Scale,
    device: torch.device,
    means: Callable[[], Means | None],
    kind: str,
    sweep: tuple[int, ...],
    stories: int,
    goal: float,
) -> None:
    card = card_of(results, kind, scale, device, means)
    for place, slots in enumerate(sweep):
        name = f"S={slots}"
        needs = 25.0 if place == 0 else 35.0 + FOR_PROFILE
        if results.done(f"pipeline, {name}"):
            continue
        if results.left < needs and device.type == "cuda":
            results.measure(f"pipeline, {name}", dict, needs=needs)
            continue
        with engine(results, card, slots, f"engine, {name}") as opened:
            if opened is None:
                continue
            results.measure(f"steps, {name}", partial(step_times, card, opened, groups=scale.groups))
            run = partial(_run, card, opened)
            short = max(scale.least_run, scale.short_run * slots)
            if place:
                results.measure(f"pipeline, {name}", partial(run, short), needs=20)
                _summary(results, card, goal)
                continue
            results.measure("preparing a prompt", partial(_preparing, card, opened))
            results.measure("warm-up", partial(run, slots), needs=20)
            if (first := results.found.get("warm-up")) is None:
                continue
            results.measure(f"pipeline, {name}", partial(run, bounded(first, stories, 45)), needs=40)
            _summary(results, card, goal)
            results.measure("checks that compute", partial(run, bounded(first, short, 20), computes=True), needs=20)
    if results.left > FOR_PROFILE / 2 or device.type == "cpu":
        _profiles(results, card, scale, sweep[0])
    else:
        results.measure("profile", dict, needs=FOR_PROFILE / 2)
    _summary(results, card, goal)


def _profiles(results: Results, card: Card, scale: Scale, slots: int) -> None:
    """Last: nobody knows what a profiler that was used leaves behind."""
    with engine(results, card, slots, "engine, profiled") as opened:
        if opened is not None and (first := results.found.get("warm-up")) is not None:
            steps = partial(step_times, card, opened, groups=scale.groups, profile=True)
            results.measure("profile of steps", steps)
            stories = bounded(first, max(scale.least_run, scale.short_run * slots), 20)
            results.measure("profile", partial(_profile, card, opened, scale, stories), needs=15)


def _run(card: Card, opened: Opened, stories: int, *, computes: bool = False) -> dict[str, Any]:
    found = card.run(opened, stories, check="computes" if computes else "waits")
    roof = _roof(card, opened.backend.limits.rows)
    return found | {
        "roofline stories/min": round(roof, 1),
        "share of the roofline": round(found["stories/min"] / roof, 4),
        "steady share of the roofline": round(found["steady stories/min"] / roof, 4),
    }


def _roof(card: Card, slots: int) -> float:
    workload = card.workload
    sample = range(2000)
    own, new = (sum(map(count, sample)) / len(sample) for count in (workload.own_tokens, workload.new_tokens))
    return H200.stories(card.kind, slots, prefix=len(workload.prefix), own=own, new=new)


def _preparing(card: Card, opened: Opened) -> dict[str, float]:
    """One thread prepares all prompts of a run: a bound of its own."""
    began = perf_counter()
    card.prepared(opened, range(50_000, 50_100))
    seconds = (perf_counter() - began) / 100
    return {"ms": round(1e3 * seconds, 3), "prompts/min at most": round(60 / seconds, 1)}


def _profile(card: Card, opened: Opened, scale: Scale, stories: int) -> dict[str, Any]:
    """A run with the profiler on for a moment amid it. The profiler slows the passes; what they take without it is
    known from events.
    """
    kernels: list[Interval] = []
    failures: list[str] = []

    def look() -> None:
        try:
            kernels.extend(profiled(lambda: sleep(scale.profile_seconds), card.device, wait=False))
        except Exception as error:  # noqa: BLE001  # it is told below
            failures.append(f"{type(error).__name__}: {error}")

    found = card.run(opened, stories, amid=look)
    shares = kernel_shares(kernels) if kernels else {"nothing": failures or "the profiler saw no kernel"}
    return {"kernels": shares, "by events, all of the run": found["device"], "stories/min": found["stories/min"]}


def _summary(results: Results, card: Card, goal: float) -> None:
    """What the goals ask."""
    runs = {
        name: each for name, each in results.found.items() if name.startswith("pipeline, ") and "stories/min" in each
    }
    if not runs:
        return
    best = max(runs, key=lambda name: runs[name]["stories/min"])
    found = runs[best]
    idle_share = found["device"].get("idle share")
    results.keep(
        "goals",
        {
            "best run": best,
            "stories/min": found["stories/min"],
            "goal stories/min": goal,
            "reached": found["stories/min"] >= goal,
            "share of the roofline": found.get("share of the roofline"),
            "idle share by events": idle_share,
            "idle share by events, of the middle 80 %": found["device"].get("idle share of the middle 80 %"),
            "idle goal": IDLE_GOAL,
            "idle reached": idle_share is not None and idle_share <= IDLE_GOAL,
            "idle share in gaps over 20 us by the profiler": results.found.get("profile", {})
            .get("kernels", {})
            .get("idle share in gaps over 20 us"),
            "model": card.kind.name,
        },
    )
