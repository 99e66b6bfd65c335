"""Beside what else computes: how many CPU threads the engine uses, and how soon its own gets the interpreter back.

How many is found by trying: beside a busy process fewer can be faster, by far. Threads of one computation wait for
each other many times a step. If somebody else's process takes one of the cores, each of these waits can last a time
slice of the operating system, and two threads are up to forty times slower than one (measured on two cores). So the
other number is tried now and then, and at once when steps get much slower.

The number is a setting of the whole process: one engine at a time may change it, and puts it back when it ends.

A GPU's engine asks torch for little, a dozen things a group of steps, but each lets go of the interpreter, and a thread
that computes in Python gives it back when its turn is over: after 5 ms, if nobody says otherwise, which a GPU would
spend idle. So turns are shorter while such an engine runs. (On a CPU this made no difference that could be measured.)
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from threading import Lock

import torch

__all__ = ["ThreadChoice", "beside_others", "choosing_threads", "most_threads", "short_turns"]

TRIAL = 3
"""Steps of a trial."""
FIRST, SOONEST, LATEST = 4, 32, 1024
"""Steps to the first trial, to the first one after a change, and at most: more and more while nothing changes."""
ALARM = 2.5
"""Times slower than usual that a step must be for a trial at once."""
TURN = 0.0005
"""Seconds that a thread keeps the interpreter while a GPU's engine runs."""
BETTER = 0.9
"""Share of the time that the other number must need at most."""


class ThreadChoice:
    """Between ``most`` threads and one. Told how long each step took, it says how many the next one should use."""

    def __init__(self, most: int) -> None:
        self.threads = most
        self.open = most > 1
        """Whether there is anything to choose."""
        self._most = most
        self._usual: deque[float] = deque(maxlen=8)
        self._trial: list[float] | None = None
        self._since = 0
        self._pause = FIRST

    def begin(self, seconds_with_one: float, seconds_with_most: float) -> int:
        """Threads for the first step; the seconds are what the same small computation took with each number."""
        if seconds_with_most > ALARM * seconds_with_one:
            self.threads = 1
        return self.threads

    def stepped(self, seconds: float) -> int:
        """Threads for the next step; ``seconds`` is what the one that has ended took."""
        if self._most == 1:
            return 1
        if self._trial is not None:
            return self._tried(seconds)
        self._since += 1
        alarm = len(self._usual) == self._usual.maxlen and seconds > ALARM * median(self._usual)
        self._usual.append(seconds)
        if self._since >= self._pause or (alarm and self._since > TRIAL):
            self._trial = []
            return self._other
        return self.threads

    @property
    def _other(self) -> int:
        return 1 if self.threads > 1 else self._most

    def _tried(self, seconds: float) -> int:
        assert self._trial is not None
        self._trial.append(seconds)
        worse = len(self._trial) == 1 and seconds > ALARM * median(self._usual)
        if len(self._trial) < TRIAL and not worse:
            return self._other
        # The first step of a trial pays for the change; of a few, the best is the fairest.
        if min(self._trial) < BETTER * median(list(self._usual)[-TRIAL:]):
            self.threads = self._other
            self._usual.clear()
            self._pause = SOONEST
        else:
            self._pause = min(LATEST, 2 * self._pause)
        self._trial, self._since = None, 0
        return self.threads


_changing = Lock()
_most: int | None = None
"""What the process had when the engine that may change it began; None: nobody changes it."""


def most_threads() -> int:
    """The threads that torch uses in this process when no engine has lowered their number."""
    return _most or torch.get_num_threads()


@contextmanager
def choosing_threads() -> Iterator[ThreadChoice]:
    """A choice whose answers may be followed (``torch.set_num_threads``) until the end; without alternatives, if
    another engine is choosing.
    """
    global _most  # noqa: PLW0603  # a setting of the process has one keeper
    if not _changing.acquire(blocking=False):
        yield ThreadChoice(1)
        return
    try:
        _most = torch.get_num_threads()
        yield ThreadChoice(_most)
    finally:
        torch.set_num_threads(_most or 1)
        _most = None
        _changing.release()


_turning = Lock()
_engines = 0
_turn = 0.0
"""Engines that want short turns, and what a turn was before the first of them."""


@contextmanager
def short_turns() -> Iterator[None]:
    """Threads of this process hand the interpreter over after ``TURN`` until the last engine has left; a process that
    has set less keeps that.
    """
    global _engines, _turn  # noqa: PLW0603  # a setting of the process
    with _turning:
        _engines += 1
        if _engines == 1:
            _turn = sys.getswitchinterval()
            if _turn > TURN:
                sys.setswitchinterval(TURN)
    try:
        yield
    finally:
        with _turning:
            _engines -= 1
            if _engines == 0 and _turn > TURN:
                sys.setswitchinterval(_turn)


@contextmanager
def beside_others(device: torch.device) -> Iterator[ThreadChoice]:
    """What an engine on ``device`` sets in the process while it runs, and the choice that it has."""
    if device.type == "cpu":
        with choosing_threads() as choice:
            yield choice
    else:
        with short_turns():
            yield ThreadChoice(1)
