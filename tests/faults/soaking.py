"""The command line with a disk that is slow, a clock that jumps and records that fail: ``benchmarks.soak`` runs it.

    ASYNCGEN_SOAK=ORDERS python -m tests.faults.soaking run ...

Ends with the process that started it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from dataclasses import replace
from datetime import datetime, tzinfo
from typing import Any

from asyncgen.backends import Completions, Pool, Progress, nobody
from asyncgen.backends.echo import Echo
from asyncgen.cli import main
from asyncgen.cli.signals import stop_when_told
from asyncgen.output import opening
from asyncgen.output.pair import Pair
from asyncgen.records import Completion
from tests.faults.stress import chance, noted, orders, pause, share

_HOURS = 72.0
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Whoever is killed leaves nothing running (Linux)."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def slow_disk() -> None:
    """An fsync takes its time; a write comes in two parts, between which a kill tears a line."""
    fsync, append = os.fsync, Pair._append

    def slow_fsync(descriptor: int) -> None:
        noted("fsync delayed")
        time.sleep(pause(0.02, 1.0))
        fsync(descriptor)

    async def append_in_two(self: Pair, file: Any, data: bytes) -> None:
        noted("write delayed, its two halves apart")
        middle = chance.randrange(len(data))
        await append(self, file, data[:middle])
        await self._thread.run(time.sleep, pause(0.02, 1.0))
        await append(self, file, data[middle:])

    os.fsync = slow_fsync  # type: ignore[assignment]  # it is never given an object with a fileno()
    Pair._append = append_in_two  # type: ignore[method-assign]


def jump_clock() -> None:
    """The wall clock is wrong by hours, and by others at every second look."""
    real, off = time.time, 0.0

    def jumping() -> float:
        nonlocal off
        if chance.random() < 0.5:
            noted("clock jumps")
            off = chance.uniform(-_HOURS, _HOURS) * 3600
        return real() + off

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Jumping:
            noted("clock jumps")
            return cls.fromtimestamp(real() + chance.uniform(-_HOURS, _HOURS) * 3600, tz)

    time.time = jumping
    opening.datetime = Jumping  # type: ignore[attr-defined]  # what the manifest's times are taken from


class Failing:
    """Hands completions on; some of them failed, as a row does in which a model computes nonsense."""

    def __init__(self, completions: Completions) -> None:
        self._completions = completions

    def send_nowait(self, group: tuple[Completion, ...], /) -> None:
        self._completions.send_nowait(tuple(map(self._failed, group)))

    def _failed(self, completion: Completion) -> Completion:
        if share("fails", f"{completion.prompt.seed} {completion.text}") >= orders.fails:
            return completion
        noted("poison: generating fails")
        return replace(completion, text="", tokens=0, finish_reason="error", error="generation failed: on purpose")


def fail_records() -> None:
    """Lets the echo backend fail."""
    run = Echo.run

    async def failing_run(self: Echo, pool: Pool, completions: Completions, progress: Progress = nobody) -> None:
        await run(self, pool, Failing(completions), progress)

    Echo.run = failing_run  # type: ignore[method-assign]


if __name__ == "__main__":
    end_with_parent()
    fail_records()
    if orders.disturbed:
        slow_disk()
        jump_clock()
    stop_when_told()  # as main does: from here on signals are its business
    noted("sessions begun")
    main()
