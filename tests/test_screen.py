"""What a terminal shows, row by row, whenever nothing is being written: nothing torn, nothing left over."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import struct
import termios
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import replace

import pyte
import pytest

from asyncgen.dashboard import recent, tell, wait_for_terminals
from asyncgen.dashboard.screen import Screen
from asyncgen.logs import configure
from asyncgen.metrics import Snapshot
from tests.test_figures import SNAPSHOT

FIGURES = {
    100: [
        "generator  busy 97%, starved 0%, 80 tokens/s now, 80 overall, batches 50% full, padding 12%",
        "limit      the generator, with batches 50% full",
        "waiting    prompts 5, completions 0, judging 0, verdicts 0, in order 2, undecided 7 of 256",
        "accepted   62% of 80 attempts, 75% of first ones, 2 prompts given up (3 with earlier sessions)",
        "refused    missing words 20, too short 10",
    ],
    50: [
        "generator  busy 97%, starved 0%, 80 tokens/s now",
        "           80 overall, batches 50% full",
        "limit      the generator, with batches 50% full",
        "waiting    prompts 5, completions 0, judging 0",
        "           verdicts 0, in order 2",
        "accepted   62% of 80 attempts, 75% of first ones",
        "           2 prompts given up (3 with earlier s..",
        "refused    missing words 20, too short 10",
    ],
}
"""What is below the bar, by the columns of the terminal."""


class Canvas:
    """A terminal in this process. ``rows`` is what it shows of what was written to ``out``, as if no time passed."""

    def __init__(self) -> None:
        self._main, end = os.openpty()
        self.out = os.fdopen(end, "w", encoding="utf-8")
        self._shown = pyte.Screen(100, 24)
        self._stream = pyte.ByteStream(self._shown)
        self.resize(100, 24)

    def snapshot(self) -> Snapshot:
        return SNAPSHOT

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._shown.resize(rows, columns)

    @property
    def rows(self) -> list[str]:
        wait_for_terminals()
        self.out.write("\0")  # what was written before has come when this comes
        self.out.flush()
        raw = b""
        while not raw.endswith(b"\0"):
            raw += os.read(self._main, 65536)
        self._stream.feed(raw[:-1])
        shown = "\n".join(line.rstrip() for line in self._shown.display).rstrip()
        return re.sub(r"\[\d\d:\d\d", "[00:00", shown).splitlines()

    def close(self) -> None:
        self.out.close()
        os.close(self._main)


@pytest.fixture
def canvas(monkeypatch: pytest.MonkeyPatch) -> Iterator[Canvas]:
    """Of the figures only those of the snapshot are shown."""
    found = Canvas()
    monkeypatch.setattr(recent, "_resident", lambda: 0)
    yield found
    found.close()


@pytest.fixture
def screen(canvas: Canvas) -> Iterator[Screen]:
    found = Screen(canvas.out, SNAPSHOT)
    found.draw(canvas)
    yield found
    found.close(canvas)


def is_bar(line: str, columns: int, end: str) -> bool:
    return line.startswith(" 30%|") and line.endswith(end) and len(line) == columns - 1 and line.count("%|") == 1


def shows(canvas: Canvas, before: list[str], columns: int, end: str = ", about 5 min 1 s left]") -> None:
    """Asserts that the terminal shows these lines, the bar and all figures, each once, and nothing else."""
    rows = canvas.rows
    at = len(before)
    assert rows[:at] == before, "\n".join(rows)
    assert is_bar(rows[at], columns, end), "\n".join(rows)
    assert rows[at + 1 :] == FIGURES[columns], "\n".join(rows)


LOGS: list[Callable[[], object]] = [
    lambda: logging.getLogger("asyncgen.somewhere").info("one short line"),
    lambda: logging.getLogger("transformers.somewhere").warning("of %s", "others"),
    lambda: tell("a notice\nof two lines"),
]
LOGGED = [
    "INFO asyncgen.somewhere: one short line",
    "WARNING transformers.somewhere: of others",
    "a notice",
    "of two lines",
]


def test_log_lines_stand_above_the_bars(canvas: Canvas, screen: Screen) -> None:
    shows(canvas, [], 100)
    with redirect_stderr(canvas.out), configure("info"):
        for log in LOGS:
            log()
    shows(canvas, LOGGED, 100)
    screen.draw(canvas)
    shows(canvas, LOGGED, 100)


def test_shorter_figures_leave_nothing_of_longer_ones(canvas: Canvas, screen: Screen) -> None:
    shows(canvas, [], 100)
    canvas.snapshot = lambda: replace(SNAPSHOT, cells=0, reasons={})  # type: ignore[method-assign]
    screen.draw(canvas)
    generator, _, *others = FIGURES[100][:4]  # without the reasons, the last of them
    assert canvas.rows[1:] == [generator.removesuffix(", padding 12%"), "limit      too early to say", *others]


@pytest.mark.parametrize("logged", [False, True])
def test_another_size_leaves_nothing_of_the_one_before(canvas: Canvas, screen: Screen, logged: bool) -> None:
    above = LOGGED if logged else []
    with redirect_stderr(canvas.out), configure("info"):
        for log in LOGS if logged else ():
            log()
        shows(canvas, above, 100)
        canvas.resize(50, 30)
        screen.draw(canvas)
        shows(canvas, above, 50, " 60/200")
        canvas.resize(100, 30)
        screen.draw(canvas)
        shows(canvas, above, 100)
        canvas.resize(100, 40)  # the same lines stand there again, though everything is drawn anew
        screen.draw(canvas)
        shows(canvas, above, 100)
        logging.getLogger("asyncgen").info("last")
        shows(canvas, [*above, "INFO asyncgen: last"], 100)


def test_in_the_end_there_is_the_bar_alone(canvas: Canvas) -> None:
    screen = Screen(canvas.out, SNAPSHOT)
    screen.draw(canvas)
    screen.close(canvas)
    tell("the summary", canvas.out)
    bar, *rest = canvas.rows
    assert is_bar(bar, 100, " 60/200 stories [00:00]")
    assert rest == ["the summary"]


@pytest.mark.parametrize(
    ("columns", "goal", "end"),
    [
        (100, 200, "[00:00, finishing 16 prompts, at most 20 s]"),
        (60, 200, "[00:00, finishing 16 prompts]"),
        (100, None, "60 stories [00:00, finishing 16 prompts, at most 20 s]"),
    ],
)
def test_a_run_that_stops_shows_what_it_finishes(canvas: Canvas, columns: int, goal: int | None, end: str) -> None:
    stopping = replace(SNAPSHOT, goal=goal, stopping=True, finishing=16, drain_seconds=20.0)
    canvas.snapshot = lambda: stopping  # type: ignore[method-assign]
    canvas.resize(columns, 24)
    screen = Screen(canvas.out, stopping)
    screen.draw(canvas)
    assert canvas.rows[0].endswith(end)
    screen.close(canvas)
