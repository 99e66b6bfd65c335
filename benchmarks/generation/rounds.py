"""Rounds of blocks, one engine at a time in rotating order, and what is made of their times."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from benchmarks.generation.child import Child
from benchmarks.generation.engine import PEERS
from benchmarks.generation.floor import Demand, Machine, floor_seconds
from benchmarks.generation.models import Shape
from benchmarks.generation.workload import Workload

__all__ = ["Block", "Measured", "baseline", "best_peer", "play", "summary", "table"]


@dataclass(frozen=True, slots=True)
class Block:
    """One engine's part of a round."""

    seconds: float
    tokens: int
    demand: Demand
    """What was asked for."""
    rows: int
    """Generated at once."""
    machine: Machine | None = None
    """The better of what the machine could do right before and right after; measured for engines of ours."""

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


@dataclass(slots=True)
class Measured:
    """What an engine did in all rounds."""

    name: str
    requests: int
    """Of one block."""
    settings: dict[str, Any] = field(default_factory=dict)
    cannot: str = ""
    blocks: list[Block] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Median tokens a second; 0 if there is none."""
        return statistics.median(block.rate for block in self.blocks) if self.blocks and not self.cannot else 0.0


def play(
    children: Sequence[Child],
    blocks: dict[str, int],
    workload: Workload,
    rounds: int,
    measure: Callable[[], Machine],
) -> list[Measured]:
    """``rounds`` rounds after a warm-up of every engine. Engines that cannot say why, and are left out from then on.

    ``measure`` says what the machine can do at best at the moment: on a shared one, another thing every minute.
    """
    found = [Measured(child.name, blocks[child.name], child.settings, child.cannot) for child in children]
    pairs = list(zip(children, found, strict=True))
    for child, measured in pairs:
        if not measured.cannot:
            child.run(0, min(4, measured.requests))
            measured.cannot = child.cannot
    for number in range(rounds):
        turn = number % len(pairs)
        for child, measured in pairs[turn:] + pairs[:turn]:
            if not measured.cannot:
                _one_block(child, measured, workload, number, measure)
    return found


def _one_block(
    child: Child, measured: Measured, workload: Workload, number: int, measure: Callable[[], Machine]
) -> None:
    first, total = number * measured.requests, len(workload.requests)
    ours = not _is_peer(child.name)
    before = measure() if ours else None
    done = child.run(first, measured.requests)
    after = measure() if ours else None
    if done is None:
        measured.cannot = child.cannot
        return
    seconds, tokens = done
    requests = [workload.requests[place % total] for place in range(first, first + measured.requests)]
    drawn = [request.limit for request in requests]
    if len(tokens) != len(drawn) or (tokens != drawn and not workload.natural):
        measured.cannot = f"it delivered {sum(tokens)} tokens where {sum(drawn)} were drawn"
        return
    demand = Demand(workload.prefix, [len(request.ids) - workload.prefix for request in requests], tokens)
    machine = before.at_best(after) if before and after else None
    measured.blocks.append(Block(seconds, sum(tokens), demand, child.rows, machine))
    print(f"round {number + 1}: {measured.name:20} {sum(tokens):8,} tokens in {seconds:7.1f} s", flush=True)


def baseline(found: Sequence[Measured]) -> Measured | None:
    """The brief's way, the fastest of its variants."""
    return max((each for each in found if each.name.startswith("brief") and each.rate), key=_rate, default=None)


def best_peer(found: Sequence[Measured]) -> Measured | None:
    """The fastest engine that is not ours."""
    return max((each for each in found if _is_peer(each.name) and each.rate), key=_rate, default=None)


def summary(each: Measured, base: Measured | None, shape: Shape) -> dict[str, Any]:
    """An engine's results: medians over the rounds with the least and the most."""
    if each.cannot or not each.blocks:
        return {"cannot": each.cannot or "it had no round", "settings": each.settings}
    result: dict[str, Any] = {
        "requests a round": each.requests,
        "tokens": [block.tokens for block in each.blocks],
        "seconds": [round(block.seconds, 3) for block in each.blocks],
        "tokens/s": _spread([block.rate for block in each.blocks]),
        "settings": each.settings,
    }
    if base is not None:
        pairs = zip(each.blocks, base.blocks, strict=False)
        result["ratio"] = _spread([block.rate / other.rate for block, other in pairs])
    if machines := [block.machine for block in each.blocks if block.machine is not None]:
        best = reduce(Machine.at_best, machines)
        measured = [(block, block.machine) for block in each.blocks if block.machine is not None]
        result["machine"] = [machine.describe() for machine in machines]
        result["fraction of floor"] = _spread([_fraction(block, shape, machine) for block, machine in measured])
        result["with the best rates of all rounds"] = _spread([_fraction(block, shape, best) for block, _ in measured])
    return result


def table(results: dict[str, dict[str, Any]], base: str) -> str:
    """The results as a markdown table."""
    lines = [
        f"| engine | tokens/s | times {base or 'brief'} (least to most) | fraction of floor | requests a round |",
        "|---|---|---|---|---|",
    ]
    for name, result in results.items():
        if reason := result.get("cannot"):
            lines.append(f"| {name} | cannot: {reason} | | | |")
            continue
        ratio, part = result.get("ratio"), result.get("fraction of floor")
        times = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else ""
        floor = f"{part['median']:.2f}" if part else ""
        rate = f"{result['tokens/s']['median']:,.0f}"
        lines.append(f"| {name} | {rate} | {times} | {floor} | {result['requests a round']:,} |")
    return "\n".join(lines)


def _rate(each: Measured) -> float:
    return each.rate


def _is_peer(name: str) -> bool:
    return name.partition("@")[0] in PEERS


def _fraction(block: Block, shape: Shape, machine: Machine) -> float:
    return floor_seconds(shape, block.demand, block.rows, machine) / block.seconds


def _spread(values: Sequence[float]) -> dict[str, float]:
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 4) for name, value in figures.items()}
