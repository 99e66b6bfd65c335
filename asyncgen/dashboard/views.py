"""Views of a running flow: tqdm bars in a terminal, plain lines elsewhere, a summary at the end.

Views only read snapshots. This is the only file that knows tqdm.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn, TextIO

import anyio
from tqdm import tqdm

from asyncgen.metrics import Snapshot, View, Watched, duration

__all__ = ["bars", "choose_view", "figures", "plain_lines", "progress", "tell"]

REFRESH_SECONDS = 0.25
LINE_SECONDS = 10.0
LEAST_COLUMNS = 20


def choose_view(
    stream: TextIO | None = None, *, plain: bool = False, quiet: bool = False, every: float = LINE_SECONDS
) -> View:
    """Bars if ``stream`` (standard error unless told) is a terminal they fit into, else a line every ``every`` seconds.

    Lines too if ``plain``, in a terminal that calls itself dumb, and where CI is set, whose logs keep every redraw;
    nothing at all if ``quiet``.
    """
    out = sys.stderr if stream is None else stream
    if quiet or out is None:  # None: the process was started without one
        return _nothing
    return _outlived(plain_lines(out, every) if plain or not _takes_bars(out) else bars(out))


def progress() -> View:
    """What ``choose_view`` chooses, for ``await asyncgen.run(config, watch=asyncgen.progress())``."""
    return choose_view()


def _takes_bars(out: TextIO) -> bool:
    if os.environ.get("TERM") == "dumb" or os.environ.get("CI", "").lower() not in ("", "0", "false"):
        return False
    return out.isatty() and os.get_terminal_size(out.fileno()).columns >= LEAST_COLUMNS


async def _nothing(_: Watched) -> None:
    """A view for nobody."""


def _outlived(view: View) -> View:
    """The same view; when its terminal goes away it ends, and the run goes on."""

    async def watch(flow: Watched) -> None:
        with suppress(OSError, ValueError):  # a ValueError is what a closed file raises
            await view(flow)

    return watch


def bars(out: TextIO) -> View:
    """A bar of accepted stories and three lines of figures, refreshed four times a second."""

    async def watch(flow: Watched) -> None:
        first = flow.snapshot()
        story_bar = tqdm(
            total=first.goal,
            initial=first.accepted_before,
            unit=" stories",
            file=out,
            dynamic_ncols=True,
            smoothing=0.05,
        )
        details = [
            tqdm(bar_format="{desc}", file=out, position=n + 1, dynamic_ncols=True, leave=False) for n in range(3)
        ]
        try:
            while True:
                _refresh(story_bar, details, flow.snapshot())
                await anyio.sleep(REFRESH_SECONDS)
        finally:
            _refresh(story_bar, details, flow.snapshot())
            for bar in (*reversed(details), story_bar):
                bar.close()

    return watch


def plain_lines(out: TextIO, every: float = LINE_SECONDS) -> View:
    """One line of figures every ``every`` seconds."""

    async def watch(flow: Watched) -> None:
        while True:
            await anyio.sleep(every)
            snapshot = flow.snapshot()
            goal = "" if snapshot.goal is None else f" of {snapshot.goal}"
            eta = snapshot.eta_seconds
            left = "" if eta is None else f", about {duration(eta)} left"
            print(f"{snapshot.accepted}{goal} stories{left} | {' | '.join(figures(snapshot))}", file=out, flush=True)

    return watch


def tell(text: str, out: TextIO | None = None) -> None:
    """Prints a line for a person, on standard error unless told; bars that are up are not torn by it. A terminal that
    is gone hears nothing, which must not end a run.
    """
    stream = sys.stderr if out is None else out
    if stream is None:
        return
    with suppress(OSError, ValueError):
        if getattr(tqdm, "_instances", None):  # bars are up
            tqdm.write(text, file=stream)
        else:
            print(text, file=stream)
        stream.flush()


def figures(snapshot: Snapshot) -> list[str]:
    """Three short texts: the generator, the queues, the rejections."""
    depths = snapshot.depths
    queues = ", ".join(f"{name} {depths.get(name, 0)}" for name in ("prompts", "completions", "verdicts"))
    early = f"{depths.get('in order', 0)} finished before an earlier one"
    reasons = ", ".join(f"{reason} {count}" for reason, count in list(snapshot.reasons.items())[:4])
    refused = sum(snapshot.reasons.values())
    return [
        f"generator busy {snapshot.busy:.0%}, {snapshot.tokens_per_second:,.0f} tokens/s",
        f"waiting: {queues}, {early}; undecided {depths.get('undecided', 0)} of {depths.get('window', 0)}",
        f"rejected for good: {snapshot.rejected}; attempts refused for: {reasons}"
        if refused or snapshot.rejected
        else "nothing rejected",
    ]


def _refresh(story_bar: tqdm[NoReturn], details: list[tqdm[NoReturn]], snapshot: Snapshot) -> None:
    story_bar.n = snapshot.accepted
    story_bar.refresh()
    for bar, text in zip(details, figures(snapshot), strict=True):
        bar.set_description_str(text)
