"""Everything that only a GPU can tell, and what a CPU, for a test, says instead."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch

from asyncgen.backends.slots.gpu.recording import Recorder
from benchmarks.environment import _cpu, _memory
from benchmarks.on_gpu.idle import Interval

__all__ = [
    "Timed",
    "Watch",
    "alive",
    "free",
    "hardware",
    "memory",
    "profiled",
    "seconds_of",
    "synchronize",
    "tidy",
]

AHEAD = 30_000_000
"""Clock cycles for which the device is kept busy while the host queues what is to be timed: about 15 ms."""


def synchronize(device: torch.device) -> None:
    """Waits until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tidy(device: torch.device) -> None:
    """Gives memory back that nobody uses any more."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def alive(device: torch.device) -> bool:
    """Whether the device still computes for this process."""
    try:
        synchronize(device)
        return float((torch.ones(4, device=device) + 1).sum()) == 8.0
    except Exception as error:  # noqa: BLE001  # any is a no, but for one that passes
        if isinstance(error, torch.OutOfMemoryError):
            tidy(device)
            return True
        return False


def hardware(device: torch.device) -> dict[str, Any]:
    """What is computed on."""
    found: dict[str, Any] = {"cpu": _cpu(), "memory_gib": _memory()}
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": about.name,
            "gpu_gib": round(about.total_memory / 2**30, 1),
            "sms": about.multi_processor_count,
        }
    return found


def free(device: torch.device) -> int:
    """Bytes of the device that nobody has, as the driver says; of a CPU a made-up number."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 2**34


def memory(device: torch.device) -> dict[str, int]:
    """Bytes: in tensors, held by torch, and taken from the driver by all processes together."""
    if device.type != "cuda":
        return {"allocated": 0, "reserved": 0, "driver": 0}
    left, total = torch.cuda.mem_get_info(device)
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "driver": total - left,
    }


def seconds_of(
    work: Callable[[], object], device: torch.device, *, calls: int = 10, rounds: int = 5, warm: int = 2
) -> float:
    """Median seconds of a call, over ``rounds`` of so many, which the device does without waiting for the host."""
    if device.type != "cuda":  # whose times mean nothing here
        calls, rounds, warm = 1, 2, 0
    for _ in range(warm):
        work()
    synchronize(device)
    found = []
    for _ in range(rounds):
        if device.type != "cuda":
            began = perf_counter()
            for _ in range(calls):
                work()
            found.append((perf_counter() - began) / calls)
            continue
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch is typed in parts
        torch.cuda._sleep(AHEAD)  # type: ignore[no-untyped-call]  # noqa: SLF001  # there is no public one
        start.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1e3 / calls)
    return statistics.median(found)


@dataclass(slots=True)
class Watch:
    """Notes when the device began and ended each pass, while it is on. Costs two events a pass."""

    device: torch.device
    on: bool = False
    marks: list[tuple[str, Any, Any]] = field(default_factory=list)

    def mark(self) -> Any:
        """Now, in the order of what is queued."""
        if self.device.type != "cuda":
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch is typed in parts
        event.record()
        return event

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notes what happens in the block, and forgets what was before."""
        self.marks.clear()
        self.on = True
        try:
            yield
        finally:
            self.on = False

    def intervals(self) -> list[Interval]:
        """What was noted; waits for the device."""
        synchronize(self.device)
        if not self.marks:
            return []
        zero = self.marks[0][1]
        return [Interval(name, _between(zero, start), _between(zero, end)) for name, start, end in self.marks]


def _between(zero: Any, mark: Any) -> float:
    return float(mark - zero) if isinstance(zero, float) else float(zero.elapsed_time(mark)) / 1e3


class Timed:
    """A recorder whose passes are noted by a ``Watch``; names are ``step`` and ``prompts``."""

    def __init__(self, inner: Recorder, watch: Watch) -> None:
        self._inner, self._watch = inner, watch

    def record(self, name: str, call: Callable[[], None]) -> Callable[[], object]:
        """See ``Recorder``."""
        queue, watch = self._inner.record(name, call), self._watch
        short = "step" if "step" in name else "prompts"

        def noted() -> None:
            if not watch.on:
                queue()
                return
            start = watch.mark()
            queue()
            watch.marks.append((short, start, watch.mark()))

        return noted


def _on_device(event: Any) -> bool:
    """Whether it is a kernel or a copy, and no mark that only spans some."""
    kind = event.activity_type() if hasattr(event, "activity_type") else ""
    annotated = hasattr(event, "is_user_annotation") and event.is_user_annotation()
    if "CUDA" not in str(event.device_type()) or annotated:
        return False
    return not kind or any(part in str(kind).lower() for part in ("kernel", "memcpy", "memset"))


def profiled(work: Callable[[], object], device: torch.device, *, wait: bool = True) -> list[Interval]:
    """The kernels (and copies) that the device computes while ``work`` is called, from CUPTI by way of torch's
    profiler; on a CPU the operators of the calling thread. ``wait``: for what ``work`` queued.
    """
    from torch.profiler import ProfilerActivity, profile

    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
        work()
        if cuda and wait:
            torch.cuda.synchronize(device)
    inner: Any = found.profiler
    intervals = []
    for event in inner.kineto_results.events():  # the raw ones: a second of them is some hundred thousand
        if cuda and not _on_device(event):
            continue
        start, took = event.start_ns() * 1e-9, event.duration_ns() * 1e-9
        if took > 0:
            intervals.append(Interval(event.name(), start, start + took))
    if not intervals:
        return []
    zero = min(each.start for each in intervals)
    return [Interval(each.name, each.start - zero, each.end - zero) for each in intervals]
