"""A step and a group of prompts by themselves: every slot in use, no pipeline, the device never waiting."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch

from asyncgen.backends.decoding import Row
from asyncgen.backends.slots.arrangement import Seat
from asyncgen.backends.slots.gpu.decoder import FixedDecoder
from asyncgen.records import Prompt, Sampling
from benchmarks.on_gpu.card import TEMPERATURE, Card, Opened
from benchmarks.on_gpu.device import profiled, synchronize
from benchmarks.on_gpu.idle import Interval, by_name, idle
from benchmarks.on_gpu.kinds import H200

__all__ = ["step_times"]


def _settle(row: Row, token: int, broken: bool, logprob: float | None) -> None:  # noqa: ARG001  # the decoder's
    row.tokens.append(token)
    if broken or len(row.tokens) >= row.prompt.max_new_tokens:
        row.end("error" if broken else "length")


@torch.inference_mode()
def step_times(card: Card, opened: Opened, *, groups: int = 8, profile: bool = False) -> dict[str, Any]:
    """Seconds of a step when the rows are half way: against the least that they could take. ``groups`` of steps are
    timed together, by the host's clock around all of them and by events around each.

    Raises RuntimeError where there is no decoder with fixed shapes.
    """
    if opened.fixed is None:
        raise RuntimeError(f"no decoder with fixed shapes: {opened.backend.notices}")
    card.activate(opened)
    decoder, sizes, workload = opened.fixed.decoder, card.workload.sizes, card.workload
    decoder.reset()
    decoder.settle = _settle
    longest = opened.config.generation.max_new_tokens
    with opened.watch.watching():
        prefix = decoder.prefix(workload.prefix)
        own = _fill(card, decoder, prefix, longest)
    prompts = [each for each in opened.watch.intervals() if each.name == "prompts"][1:]
    warm = max(1, round(sizes.mean / 2) // decoder.steps)
    for _ in range(warm):
        decoder.step()
    synchronize(card.device)
    with opened.watch.watching():
        began = perf_counter()
        for _ in range(groups):
            decoder.step()
        synchronize(card.device)
        whole = perf_counter() - began
    steps = [each for each in opened.watch.intervals() if each.name == "step"]
    kernels = profiled(lambda: [decoder.step() for _ in range(2)], card.device) if profile else []
    rows, live = decoder.slots, decoder.live
    decoder.reset()
    reached = own / max(1, rows) + 1 + (warm + groups / 2) * decoder.steps
    floor = H200.step(card.kind, rows, prefix=len(workload.prefix), own=reached)
    middle = _median([each.end - each.start for each in steps])
    a_group = _median([each.end - each.start for each in prompts])
    tokens = decoder.widths.tokens
    found = {
        "slots": rows,
        "rows live": live,
        "mean own tokens": round(reached, 1),
        "step ms": round(1e3 * middle, 4),
        "step ms by the host's clock": round(1e3 * whole / max(1, len(steps)), 4),
        "floor ms": round(1e3 * floor, 4),
        "floor / step": round(floor / middle, 4) if middle else 0.0,
        "tokens/s at that pace": round(rows / middle, 1) if middle else 0.0,
        "prompts ms": round(1e3 * a_group, 4),
        "prompt tokens a pass": tokens,
        "prompts floor ms": round(1e3 * H200.prompts(card.kind, tokens), 4),
        "passes": idle(steps).describe(),
    }
    if profile:
        found["kernels"] = kernel_shares(kernels)
    return found


def kernel_shares(kernels: list[Interval]) -> dict[str, Any]:
    """What the profiler saw."""
    return {"number": len(kernels)} | idle(kernels).describe() | {"longest together": by_name(kernels)}


def _fill(card: Card, decoder: FixedDecoder, prefix: Any, longest: int) -> int:
    """A row in each slot; gives the own prompt tokens of all."""
    sampling, index, tokens = Sampling(TEMPERATURE), 0, 0
    while decoder.free:
        seats: list[Seat] = []
        together, room = 0, decoder.room
        while len(seats) < min(decoder.free, decoder.most_rows):
            count = card.workload.own_tokens(index)
            row = Row(Prompt(index, (), seed=index, max_new_tokens=longest), 0.0)
            seat = Seat(
                row,
                tuple(4 + (index * 31 + k * 7) % (card.kind.vocabulary - 4) for k in range(count)),
                prefix,
                sampling,
            )
            if together + count > decoder.together or seat.pages_needed > room:
                break
            together, room, index = together + count, room - seat.pages_needed, index + 1
            seats.append(seat)
        if not seats:
            break
        decoder.admit(seats)
        tokens += together
    return tokens


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0
