"""What this machine can do at best: ``python -m benchmarks.generation.machine SECONDS`` prints it as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from time import perf_counter

import torch

__all__ = ["measure"]

_SHAPES = ((64, 256, 768), (128, 256, 768), (128, 512, 1536), (256, 1024, 1024), (1024, 1024, 1024))
_MEBIBYTES = 256


def measure(seconds: float) -> dict[str, float]:
    """The best float32 matrix rate of several shapes, in FLOP/s, and the best memory bandwidth, in bytes/s.

    ``seconds`` go to each of the shapes, to reading and to copying.
    """
    with torch.inference_mode():
        return {"flops": max(_matrix(*shape, seconds) for shape in _SHAPES), "bandwidth": _bandwidth(seconds)}


def _matrix(rows: int, inner: int, columns: int, seconds: float) -> float:
    left, right, out = torch.rand(rows, inner), torch.rand(inner, columns), torch.empty(rows, columns)
    return 2 * rows * inner * columns / _fastest(lambda: torch.mm(left, right, out=out), seconds)


def _bandwidth(seconds: float) -> float:
    """Of reading alone and of copying, which reads and writes."""
    source = torch.rand(_MEBIBYTES * 2**18)
    target = torch.empty_like(source)
    size = source.numel() * source.element_size()
    return max(size / _fastest(source.max, seconds), 2 * size / _fastest(lambda: target.copy_(source), seconds))


def _fastest(work: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest of many runs."""
    work()
    best, until = float("inf"), perf_counter() + seconds
    while (began := perf_counter()) < until:
        work()
        best = min(best, perf_counter() - began)
    return best


if __name__ == "__main__":
    print(json.dumps(measure(float(sys.argv[1]))))
