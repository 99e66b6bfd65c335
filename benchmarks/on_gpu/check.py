"""The part ``check``: is it right, are bits the same, does memory hold what was planned, what takes how long."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from asyncgen.backends.slots.gpu.opening import Means
from benchmarks.on_gpu import correct, micro
from benchmarks.on_gpu.card import Card, Opened
from benchmarks.on_gpu.kinds import KINDS
from benchmarks.on_gpu.results import Results
from benchmarks.on_gpu.scale import Scale, card_of
from benchmarks.on_gpu.startups import Neighbour, trials
from benchmarks.on_gpu.steps import step_times

__all__ = ["check"]


def check(results: Results, scale: Scale, device: torch.device, means: Callable[[], Means | None]) -> None:
    """Everything of it, what matters most first."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    results.device = device
    on = {"dtype": dtype, "device": device}
    with torch.inference_mode():
        _operations(results, scale, means, **on)
    _engine(results, scale, device, means, {"same rows": 30.0, "a step": 15.0})
    _few_layers(results, scale, device, means, greedy=True)
    with torch.inference_mode():
        _attentions(results, scale, means, **on)
        _rates(results, scale, means, **on)
    _few_layers(results, scale, device, means, greedy=False)
    if device.type == "cuda":
        _engine(results, scale, device, means, {"a step, not captured": 30.0, "a step, compiled": 100.0})


def _attention(means: Callable[[], Means | None]) -> Any:
    made = means()
    if made is None:
        raise RuntimeError("there is no attention for fixed shapes here")
    return made.attention


def _operations(results: Results, scale: Scale, means: Callable[[], Means | None], **on: Any) -> None:
    rounds = {"slots": scale.attention_slots, "tokens": scale.attention_tokens, "rounds": 3}
    for heads in (*scale.heads, *scale.more_heads):
        name = f"attention against float64, {heads.queries} over {heads.kv} heads of {heads.size}"
        results.measure(name, partial(_right, means, heads, rounds, on))
    results.measure(
        "attention in other slots",
        lambda: [
            correct.slots_are_alike(_attention(means), each, slots=scale.attention_slots, **on) for each in scale.heads
        ],
    )
    for kind in dict.fromkeys((scale.small, scale.large)):
        steady = partial(correct.products_are_steady, KINDS[kind], scale.steady_rows, on["device"], on["dtype"])
        results.measure(f"products and places, {kind}", steady)


def _right(means: Callable[[], Means | None], heads: Any, rounds: dict[str, int], on: dict[str, Any]) -> Any:
    return correct.attention_is_right(_attention(means), [heads], **rounds, **on)


def _attentions(results: Results, scale: Scale, means: Callable[[], Means | None], **on: Any) -> None:
    for slots in scale.micro_slots:
        for heads in scale.heads:
            name = f"S={slots}, group of {heads.group}"
            prefix = scale.sizes.shared
            call = partial(_attention_times, means, heads, slots, prefix, on)
            results.measure(f"attention, {name}", call)
            results.measure(
                f"torch's attention, {name}", partial(micro.torch_attention_times, heads, slots, prefix=prefix, **on)
            )
    for heads in scale.heads:
        results.measure(
            f"attention of prompts, group of {heads.group}", partial(_prefill_times, means, heads, scale, on)
        )


def _attention_times(means: Callable[[], Means | None], heads: Any, slots: int, prefix: int, on: dict[str, Any]) -> Any:
    return micro.attention_times(_attention(means), heads, slots, prefix=prefix, **on)


def _prefill_times(means: Callable[[], Means | None], heads: Any, scale: Scale, on: dict[str, Any]) -> Any:
    return micro.prefill_times(_attention(means), heads, 4 * scale.attention_tokens, prefix=scale.sizes.shared, **on)


def _rates(results: Results, scale: Scale, means: Callable[[], Means | None], **on: Any) -> None:
    device, dtype = on["device"], on["dtype"]
    results.measure("the device at its best", lambda: micro.bandwidth(device))
    for kind in dict.fromkeys((scale.small, scale.large)):
        times = partial(micro.product_times, KINDS[kind], scale.micro_rows, device, dtype)
        results.measure(f"products, {kind}", times)
    results.measure(
        f"sampling, S={scale.main}",
        lambda: micro.sampler_times(_made(means).sampler, KINDS[scale.small], scale.main, device, dtype),
    )
    from asyncgen.backends.sampling import Sampler

    results.measure(
        f"torch's sampling, S={scale.main}",
        lambda: micro.sampler_times(Sampler, KINDS[scale.small], scale.main, device, dtype),
    )


def _made(means: Callable[[], Means | None]) -> Means:
    made = means()
    if made is None:
        raise RuntimeError("there is no sampler for fixed shapes here")
    return made


def _engine(
    results: Results, scale: Scale, device: torch.device, means: Callable[[], Means | None], names: dict[str, float]
) -> None:
    """The whole model: the same rows, planned memory, a step; then a step that is not captured, and one compiled.

    ``names``: which of these, and the seconds that each takes.
    """
    names = {name: needs for name, needs in names.items() if not results.done(name)}
    if not names or results.left < min(names.values()):
        for name, needs in names.items():
            results.measure(name, dict, needs=needs)
        return
    card = card_of(results, scale.small, scale, device, means)
    for changes in CHANGES:
        those = {name: needs for name, needs in names.items() if name in changes[0] and results.left >= needs}
        if not those:
            continue
        with engine(results, card, scale.same_slots, f"engine: {', '.join(those)}", **changes[1]) as opened:
            for name in those if opened is not None else ():
                assert opened is not None
                work = partial(step_times, card, opened, groups=scale.groups)
                if name == "same rows":
                    work = partial(correct.rows_are_the_same, card, opened, scale.same_rows)
                results.measure(name, work)
    for name in names:
        results.leave(name, "too little time was left, or the engine could not be opened")


CHANGES: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("same rows", "a step"), {}),
    (("a step, not captured",), {"captured": False}),
    (("a step, compiled",), {"compiled": True}),
)


def _few_layers(
    results: Results, scale: Scale, device: torch.device, means: Callable[[], Means | None], *, greedy: bool
) -> None:
    name, needs = ("greedy against float64 and generate", 15.0) if greedy else ("start-ups", 45.0)
    if results.done(name) or (results.left < needs and device.type == "cuda"):
        results.measure(name, dict, needs=needs)
        return
    card = card_of(results, scale.few_layers, scale, device, means, again=" of few layers")
    if not greedy:
        results.measure(name, lambda: _startups(card, scale))
        return
    with engine(results, card, min(64, scale.same_slots), "engine, few layers") as opened:
        if opened is not None:
            results.measure(name, lambda: correct.greedy_is_right(card, opened, *scale.greedy))


def _startups(card: Card, scale: Scale) -> dict[str, Any]:
    neighbour = Neighbour() if card.device.type == "cuda" else None
    try:
        return trials(card, scale.startup_slots, scale.startups, scale.startup_rows, neighbour)
    finally:
        if neighbour is not None:
            neighbour.close()


class engine:  # noqa: N801  # it is used as a function is
    """Opens the engine for a block, and closes it; None, with the reason among what failed, if it cannot be opened."""

    def __init__(self, results: Results, card: Card, slots: int, name: str, **changes: Any) -> None:
        self._results, self._card, self._slots, self._name, self._changes = results, card, slots, name, changes
        self._opened: Opened | None = None

    def __enter__(self) -> Opened | None:
        def opening() -> dict[str, Any]:
            self._opened = self._card.open(self._slots, **self._changes)
            return self._opened.describe()

        self._results.measure_again(self._name, opening)
        return self._opened

    def __exit__(self, *_: object) -> None:
        if self._opened is not None:
            try:
                self._card.close(self._opened)
            except Exception as error:  # noqa: BLE001  # what was measured is kept
                self._results.say(f"closing the engine: {type(error).__name__}: {error}")
