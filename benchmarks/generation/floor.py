"""The floor: the least time in which this machine could do a workload, if nothing were computed or read twice.

Every class of operations takes ``max(FLOP / matrix rate, bytes / bandwidth)``, and classes are added. With W weights of
all layers and V of the vocabulary projection (float32, 4 bytes), L layers of H heads and G key-value heads of size D, a
prefix of P tokens, and requests of p own prompt tokens and n output tokens each::

    prompts     2 W (P + sum p) FLOP                     the prefix once, own prompts once; weights read with decoding
    decoding    2 W sum(n - 1) FLOP,  4 W steps bytes    each token once (the last is not read); weights once a step
    vocabulary  2 V sum n FLOP,  4 V steps bytes         once for each output token
    prefix      4 H D L P (P/2 + sum(p + n - 1)) FLOP,  8 G D L P steps bytes      a matrix product; read once a step
    own         4 H D L (sum p(p+1)/2 + c) FLOP,  8 G D L c bytes                  c: own keys that decoding reads,
                                                         c = sum over requests of (n-1) p + (n-1) n / 2

``steps`` is ``sum(n - 1) / S`` with S rows at once, all of them always occupied. Writing keys and values, norms,
rotations, activations and sampling are left out, so the floor lies below what is possible. The rates are measured right
before and after each block (machine.py), the better of both: a shared machine is another one every minute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.generation.models import Shape

__all__ = ["Demand", "Machine", "floor_seconds", "operations"]


@dataclass(frozen=True, slots=True)
class Machine:
    """What it can do at best."""

    flops: float
    """Float32 matrix rate, in FLOP/s."""
    bandwidth: float
    """In bytes/s."""

    def at_best(self, other: Machine) -> Machine:
        """The better of both, in each respect."""
        return Machine(max(self.flops, other.flops), max(self.bandwidth, other.bandwidth))

    def describe(self) -> dict[str, float]:
        """For the results."""
        return {"GFLOP/s": round(self.flops / 1e9, 1), "GB/s": round(self.bandwidth / 1e9, 1)}


@dataclass(frozen=True, slots=True)
class Demand:
    """What was asked for; lengths in tokens."""

    prefix: int
    prompts: Sequence[int]
    """Own prompt tokens of each request."""
    outputs: Sequence[int]
    """Generated tokens of each request."""


def operations(shape: Shape, demand: Demand, rows: int) -> dict[str, tuple[float, float]]:
    """FLOP and bytes of each class of operations, ``rows`` being generated at once."""
    own = list(zip(demand.prompts, demand.outputs, strict=True))
    fed = sum(max(0, n - 1) for _, n in own)
    steps = fed / min(rows, len(own))
    read = sum((n - 1) * p + (n - 1) * n / 2 for p, n in own if n)
    prompts = sum(demand.prompts)
    computed = shape.layers * 4 * shape.heads * shape.head_dim
    stored = shape.layers * 8 * shape.kv_heads * shape.head_dim
    prefix = demand.prefix
    return {
        "prompts": (2.0 * shape.layer_weights * (prefix + prompts), 0.0),
        "decoding": (2.0 * shape.layer_weights * fed, 4.0 * shape.layer_weights * steps),
        "vocabulary": (2.0 * shape.head_weights * sum(demand.outputs), 4.0 * shape.head_weights * steps),
        "prefix": (computed * prefix * (prefix / 2 + prompts + fed), stored * prefix * steps),
        "own": (computed * (sum(p * (p + 1) / 2 for p in demand.prompts) + read), stored * read),
    }


def floor_seconds(shape: Shape, demand: Demand, rows: int, machine: Machine) -> float:
    """The least seconds for all of ``demand``."""
    return sum(
        max(flops / machine.flops, moved / machine.bandwidth)
        for flops, moved in operations(shape, demand, rows).values()
    )
