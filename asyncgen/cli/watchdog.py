"""Ends a run that has come to a standstill, saying where everything stands: nothing hangs for ever.

It counts, in a thread of its own, the time without a sign of life, from the first step of a run until its process has
ended. While stories are made, what moves is seen on the event loop (``Watchdog.watch``), and whether it still does is
decided in the thread, for the loop may be what hangs. Before and after that each step is a sign of life (``phase``), as
is what the process reads and writes: a large model on a slow disk may take longer than the time that is allowed.

Everything that was decided is committed within half a second of its writing, so nothing is lost by ending the process,
whatever its threads are stuck in. One thing escapes it: code in C that keeps Python's lock stops this thread too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from pathlib import Path

import anyio

from asyncgen.bottleneck import SATURATED, bottleneck
from asyncgen.cli.stacks import tasks, threads
from asyncgen.dashboard import tell, terminals_held
from asyncgen.differences import since
from asyncgen.metrics import Snapshot, Watched, duration

_log = logging.getLogger(__name__)

__all__ = ["STALLED", "Watchdog"]

STALLED = 75
"""Exit code: EX_TEMPFAIL of sysexits, try again."""
LEAVING_SECONDS = 2.0
"""The process ends so long after it was found to stand still, at the latest."""
ALIVE_BYTES = 1 << 20
"""Bytes read and written that are a sign of life: more than looking at them and logging take."""
_LOOKS = 40
"""Looks in the time that is allowed."""
_LONGEST_PAUSE = 1.0
_ENDING = "ending"


class Watchdog:
    """Allows a run ``seconds`` without a sign of life; None any time."""

    def __init__(self, seconds: float | None, cancel: Callable[[], object], again: str) -> None:
        """``cancel``, which is called in a thread, asks the run to end; ``again`` is the command that goes on."""
        self._seconds, self._cancel, self._again = seconds, cancel, again
        self._signs = 0
        self._phase = "starting"
        self._seen: tuple[Snapshot, Snapshot] | None = None
        """While stories are made: the run when it last moved, and when it was last looked at."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bitten = threading.Event()

    @property
    def bit(self) -> bool:
        """Whether the run stood still for too long."""
        return self._bitten.is_set()

    def begin(self) -> None:
        """Starts to count, until the process ends."""
        if self._seconds is None:
            return
        for work in (self._guard, self._end_by_force):
            threading.Thread(target=work, args=(self._seconds,), name="asyncgen watchdog", daemon=True).start()

    def phase(self, name: str = _ENDING) -> None:
        """A sign of life: ``name`` is what is done next; the end of the process, unless told."""
        self._phase = name
        self._signs += 1
        with suppress(RuntimeError):  # outside of the loop
            self._loop = asyncio.get_running_loop()

    async def watch(self, flow: Watched) -> None:
        """Looks at ``flow``, which makes stories, until cancelled."""
        if self._seconds is None:
            return
        pause = _pause(self._seconds)
        self.phase("generating")
        before: Hashable = None
        try:
            while True:
                snapshot = flow.snapshot()
                if (now := _movement(snapshot)) != before or self._seen is None:
                    before, self._seen = now, (snapshot, snapshot)
                    self._signs += 1
                self._seen = (self._seen[0], snapshot)
                await anyio.sleep(pause)
        finally:
            self._seen = None
            self.phase("ending the generation")

    def _guard(self, seconds: float) -> None:
        """Counts the time without a sign of life itself: a process that was stopped and goes on (Ctrl-Z, a container
        that is paused) has stood still for no longer than a look or two.
        """
        pause = _pause(seconds)
        stood, signs, moved = 0.0, -1, 0
        before = time.monotonic()
        while stood <= seconds:
            time.sleep(pause)
            now = time.monotonic()
            stood += min(now - before, 2 * pause)
            before = now
            if self._signs != signs:
                signs, stood = self._signs, 0.0
            if self._seen is None and (total := _bytes_moved()) >= moved + ALIVE_BYTES:
                moved, stood = total, 0.0
            if self._phase == _ENDING and terminals_held():  # by a person, who reads the last words
                stood = 0.0
        self._bite(seconds)

    def _bite(self, seconds: float) -> None:
        """In the thread: says where everything stands and asks the run to end; the process ends in any case."""
        self._bitten.set()  # first: whoever holds the terminal or the log may be what hangs
        try:
            what = f"{self._what(seconds)}{self._who()}"
            tell(f"{what}; this is where it stands:\n{threads()}{tasks(self._loop)}{what}")
            _log.error("%s", what)
            tell(f"stopped; what was decided is on disk; go on with: {self._again}")
        finally:
            self._cancel()

    def _end_by_force(self, _: float) -> None:
        self._bitten.wait()
        time.sleep(LEAVING_SECONDS)
        os._exit(STALLED)

    def _what(self, seconds: float) -> str:
        if self._seen is None:
            return f"stalled while {self._phase}: no sign of life for {duration(seconds)} (watchdog)"
        return f"stalled: no token, verdict or record for {duration(seconds)} (watchdog)"

    def _who(self) -> str:
        """What limited the run while it stood still, if that can be told: nothing can where the loop itself hangs."""
        seen = self._seen
        if seen is None or seen[0] is seen[1]:
            return ""
        if since(seen[1], seen[0]).busy >= SATURATED:
            return "; the model was at work and gave nothing"
        who = bottleneck(seen[1], seen[0])
        return f"; waiting for {who}" if who else ""


def _pause(seconds: float) -> float:
    return min(_LONGEST_PAUSE, seconds / _LOOKS)


def _movement(snapshot: Snapshot) -> Hashable:
    """Differs from what it was if anything has been done since: all that is counted, and no time."""
    s = snapshot
    done = (s.generated, s.cells, s.batches, s.rows_filled, s.prefix_misses, s.attempts, s.accepted, s.rejected)
    tried = s.out_of_memory  # each prompt only so often
    return (*done, tried, s.stopping, s.let_go, *s.depths.values(), *s.validator_calls.values())


def _bytes_moved() -> int:
    """Bytes that this process has read and written so far, from a disk where files are mapped into memory, as weights
    are; 0 where the system does not say.
    """
    with suppress(OSError, ValueError):
        counts = dict(line.split(":") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines())
        return sum(int(counts.get(name, "0")) for name in ("rchar", "wchar", "read_bytes"))
    return 0
