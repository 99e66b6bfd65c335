"""Sessions of the soaked run, one after another: begun, looked at while they go on, and ended in one of many ways."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.soak.plan import ENDLESS, Place
from benchmarks.soak.samples import Growth, Sample, growth, sample
from tests.faults.stress import Orders

__all__ = ["Sessions", "Unexpected"]

PATIENCE = 90.0
"""Seconds that a session may take to end when it is asked to: it drains for 20."""
_ENDINGS = {
    "SIGKILL": 70,
    "SIGTERM": 9,
    "SIGINT": 7,
    "SIGTERM twice": 5,
    "SIGTERM, then SIGKILL": 5,
    "source raises": 4,
}
"""How often each is chosen."""
_AT_WORK = 0.75
"""Share of the sessions whose time counts from their first story; that of the others counts from their beginning, and
they may end while they read what is there.
"""


class Unexpected(Exception):
    """A session did what it must not."""


@dataclass(slots=True)
class Sessions:
    """All sessions at one place, and what was seen of them."""

    place: Place
    chance: random.Random
    say: Callable[[str], object]
    endings: Counter[str] = field(default_factory=Counter)
    odd_files: set[str] = field(default_factory=set)
    """Files that were seen and have no business there."""
    most: Sample = field(default_factory=lambda: Sample(0, 0, 0))
    """The most of each that any session held."""
    _goal: int = ENDLESS

    def made(self) -> int:
        """Stories on disk."""
        path = self.place.stories
        if not path.exists():
            return 0
        with path.open("rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))

    def _bytes(self) -> int:
        return self.place.stories.stat().st_size if self.place.stories.exists() else 0

    def disturb(self, until: float) -> None:
        """One session after the other, each ended at a random moment, until the monotonic clock says ``until``."""
        while (left := until - time.monotonic()) > 0:
            made = self.made()
            (ending,) = self.chance.choices(list(_ENDINGS), list(_ENDINGS.values()))
            self._end_at(ending, min(left, self.chance.uniform(0, self.place.scale.longest)))
            self.say(f"{ending}: {made} stories on disk before, {self.made()} after")

    def leave_alone(self, seconds: float) -> Growth:
        """One session that is not disturbed from outside for so long after its first story; what it held."""
        before = self.made()
        samples: list[Sample] = []
        with _ended(self._start(raises=False)) as session:
            bytes_before = self._bytes()
            _wait_for(lambda: self._bytes() > bytes_before or session.poll() is not None)
            self._look(session, seconds, samples)
            session.send_signal(signal.SIGTERM)
            self._expect(session, {143})
        self.endings["SIGTERM after a long session"] += 1
        return growth(samples, self.made() - before)

    def finish(self, goal: int, kills: int, seconds: float) -> list[Sample]:
        """Goes on to exactly ``goal`` stories, killed a few times on the way; what the last session held."""
        self._goal = goal
        for _ in range(kills):
            self._end_at("SIGKILL", self.chance.uniform(0, self.place.scale.longest))
        samples: list[Sample] = []
        with _ended(self._start(raises=False)) as session:
            self._look(session, seconds, samples)
            self._expect(session, {0})
        return samples

    def _end_at(self, ending: str, seconds: float) -> None:
        """One session, ended after so many seconds unless it has ended itself."""
        begun, before = self.place.tally["sessions begun"], self._bytes()
        kills = ending in ("SIGKILL", "source raises")  # a source that has not raised by then
        with _ended(self._start(raises=ending == "source raises")) as session:
            if self.chance.random() < _AT_WORK:
                _wait_for(lambda: self._bytes() > before or session.poll() is not None)
            elif not kills:  # other signals are the program's business only once it is one
                _wait_for(lambda: self.place.tally["sessions begun"] > begun or session.poll() is not None)
            self._look(session, seconds)
            if session.poll() is not None:
                self._expect(session, {2} if ending == "source raises" else {0} if self._goal < ENDLESS else set())
                self.endings["source raises" if session.returncode else "complete"] += 1
                return
            number = signal.SIGKILL if kills else signal.SIGINT if ending == "SIGINT" else signal.SIGTERM
            session.send_signal(number)
            allowed = {-number if kills else 128 + number}
            if ending in ("SIGTERM twice", "SIGTERM, then SIGKILL"):
                time.sleep(self.chance.uniform(0, 0.5))
                session.send_signal(signal.SIGTERM if ending == "SIGTERM twice" else signal.SIGKILL)
                allowed.add(-signal.SIGKILL if ending == "SIGTERM, then SIGKILL" else 128 + number)
            self._expect(session, allowed | ({0} if self._goal < ENDLESS else set()))
        self.endings["SIGKILL" if kills else ending] += 1

    def _start(self, *, raises: bool) -> subprocess.Popen[bytes]:
        after = self.chance.randrange(200) if raises else None
        return self.place.start(self._goal, Orders("", seed=self.chance.getrandbits(32), raise_after=after))

    def _look(self, session: subprocess.Popen[bytes], seconds: float, samples: list[Sample] | None = None) -> None:
        """Waits so long, or until the session ends, and looks at it again and again."""
        until = time.monotonic() + seconds
        while session.poll() is None and (left := until - time.monotonic()) > 0:
            seen = sample(session.pid)
            if seen is not None:
                self.most = Sample(
                    *(max(getattr(self.most, name), getattr(seen, name)) for name in ("rss", "descriptors", "threads"))
                )
                if samples is not None:
                    samples.append(seen)
            self.odd_files |= set(self.place.left_behind())
            try:
                session.wait(min(self.place.scale.look, left))
            except subprocess.TimeoutExpired:
                continue

    def _expect(self, session: subprocess.Popen[bytes], codes: set[int]) -> None:
        try:
            code = session.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Unexpected(f"a session did not end within {PATIENCE:.0f} s; {self._said()}") from None
        if code not in codes:
            raise Unexpected(f"a session ended with {code}, expected was one of {sorted(codes)}; {self._said()}")
        self.odd_files |= set(self.place.left_behind())

    def _said(self) -> str:
        return f"its last words:\n{self.place.messages.read_text(encoding='utf-8', errors='replace')[-4000:]}"


@contextmanager
def _ended(session: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """However the block ends, its session is over."""
    try:
        yield session
    finally:
        if session.poll() is None:
            session.kill()
        session.wait()


def _wait_for(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not happened() and time.monotonic() < until:
        time.sleep(0.01)
