"""Bars in a terminal: one of stories, and lines of figures below it, never wider than the terminal is now."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar, NoReturn, TextIO

import anyio
import anyio.to_thread
from tqdm import tqdm

from asyncgen.dashboard.figures import lay_out, printable, time_left
from asyncgen.dashboard.patient import Patient
from asyncgen.dashboard.recent import Recent
from asyncgen.metrics import Snapshot, View, Watched

__all__ = ["LEAST_COLUMNS", "Screen", "bars"]

REFRESH_SECONDS = 0.25
HELD_SECONDS = 0.5
"""Time for a terminal to show the end of the bars; one that has not by then is held."""
LEAST_COLUMNS = 20
NARROW = 50
"""Columns below which the bar leaves out words."""
SPACIOUS = 80
"""Columns below which it says the first thing only about what is left."""
ELSEWHERE = (100, 24)
"""Columns and rows of what does not say how large it is."""

WIDE_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} stories [{elapsed}{postfix}]"
NARROW_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}"
ENDLESS = "{n_fmt} stories [{elapsed}{postfix}]"


def bars(out: TextIO) -> View:
    """A bar of accepted stories and lines of figures, drawn four times a second."""

    async def watch(flow: Watched) -> None:
        # The first lock that tqdm makes imports multiprocessing, which reads files.
        await anyio.to_thread.run_sync(tqdm.get_lock, limiter=anyio.CapacityLimiter(1))
        screen = Screen(out, flow.snapshot())
        try:
            while True:
                screen.draw(flow)
                await anyio.sleep(REFRESH_SECONDS)
        finally:
            screen.close(flow)
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(screen.wait, limiter=anyio.CapacityLimiter(1))

    return watch


if TYPE_CHECKING:
    _Tqdm = tqdm[NoReturn]  # only the stubs know a type of what is iterated over
else:
    _Tqdm = tqdm


class _Bar(_Tqdm):
    """tqdm's own thread, which looks after bars that nobody updates, is not started for ours."""

    monitor_interval: ClassVar[int] = 0


class Screen:
    """The bars, while they are up."""

    def __init__(self, out: TextIO, first: Snapshot) -> None:
        self._out = Patient(out)
        self._size = _size(out)
        self._recent = Recent()
        columns, rows = self._size
        self._stories = _Bar(
            total=first.goal,
            initial=first.accepted,
            file=self._out,
            ncols=columns,
            nrows=rows,
            bar_format=_bar_format(first.goal, columns),
            colour="green" if _takes_colour(out) else None,
        )
        self._lines: list[_Bar] = []

    def draw(self, flow: Watched, *, last: bool = False) -> None:
        """Shows the state now, unless the terminal is held; the ``last`` one estimates nothing any more."""
        if self._out.held and not last:
            return
        snapshot = flow.snapshot()
        self._fit(snapshot.goal)
        columns, rows = self._size
        self._stories.n = snapshot.accepted
        self._stories.set_postfix_str("" if last else _time_left(snapshot, columns), refresh=False)
        self._stories.refresh()
        texts = lay_out(self._recent.figures(snapshot), columns, max(0, rows - 2))
        for at, text in enumerate(texts + [""] * (len(self._lines) - len(texts))):
            self._show(at, printable(text, self._out.encoding))
        self._out.write("\r")  # at the left the cursor stays where it is when the terminal changes its width
        self._out.send()

    def close(self, flow: Watched) -> None:
        """Leaves the bar of stories as it is in the end, and nothing below it."""
        self.draw(flow, last=True)
        for bar in (*reversed(self._lines), self._stories):
            bar.close()
        self._out.send()

    def wait(self) -> None:
        """Waits for a terminal that takes what it is given, not for one that is held."""
        self._out.wait(HELD_SECONDS)

    def _show(self, at: int, text: str) -> None:
        if at == len(self._lines):
            columns, rows = self._size
            position = abs(self._stories.pos) + at + 1
            line = _Bar(bar_format="{desc}", file=self._out, position=position, leave=False, ncols=columns, nrows=rows)
            self._lines.append(line)
        if self._lines[at].desc != text:
            self._lines[at].set_description_str(text)

    def _fit(self, goal: int | None) -> None:
        """Begins anew below the cursor if the terminal has another size than before. tqdm would go on to fill up the
        lines to their old width, and so write into the lines below.
        """
        if (size := _size(self._out)) == self._size:
            return
        self._size = size
        self._out.write("\r\x1b[J")
        self._stories.bar_format = _bar_format(goal, size[0])
        for bar in (self._stories, *self._lines):
            bar.ncols, bar.nrows = size
            bar.sp = bar.status_printer(self._out)
        for line in self._lines:
            line.desc = ""  # what is drawn now: nothing


def _time_left(snapshot: Snapshot, columns: int) -> str:
    """As much of it as there is room for."""
    text = time_left(snapshot)
    return text if columns >= SPACIOUS else text.partition(", ")[0]


def _bar_format(goal: int | None, columns: int) -> str:
    if goal is None:
        return ENDLESS
    return WIDE_BAR if columns >= NARROW else NARROW_BAR


def _size(out: TextIO | Patient) -> tuple[int, int]:
    """Columns to write into and rows. The last column stays free: some terminals begin a line after it at once."""
    try:
        columns, rows = os.get_terminal_size(out.fileno())
    except (OSError, ValueError):  # no terminal, or no file at all
        columns, rows = 0, 0
    return max(1, (columns or ELSEWHERE[0]) - 1), max(2, rows or ELSEWHERE[1])


def _takes_colour(out: TextIO) -> bool:
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
