"""Which view a stream gets, plain lines, and what is told between the bars."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from typing import TextIO

import anyio
from tqdm import tqdm

from asyncgen.dashboard.figures import one_line, printable
from asyncgen.dashboard.patient import Patient
from asyncgen.dashboard.recent import Recent
from asyncgen.dashboard.screen import HELD_SECONDS, LEAST_COLUMNS, bars
from asyncgen.metrics import View, Watched

__all__ = ["choose_view", "plain_lines", "progress", "tell"]

LINE_SECONDS = 10.0


def choose_view(
    stream: TextIO | None = None, *, plain: bool = False, quiet: bool = False, every: float = LINE_SECONDS
) -> View:
    """Bars if ``stream`` (standard error unless told) is a terminal they fit into, else a line every ``every`` seconds.

    Lines too if ``plain``, in a terminal that calls itself dumb, where tqdm is switched off (TQDM_DISABLE), and where
    CI is set, whose logs keep every redraw; nothing at all if ``quiet``.
    """
    out = sys.stderr if stream is None else stream
    if quiet or out is None:  # None: the process was started without one
        return _nothing
    return _outlived(plain_lines(out, every) if plain or not _takes_bars(out) else bars(out))


def progress() -> View:
    """The view for where this is called: bars of the notebook in Jupyter, else what ``choose_view`` chooses.

    ``await asyncgen.run(config, watch=asyncgen.progress())``
    """
    if _in_notebook():
        with suppress(ImportError):  # without ipywidgets there are lines
            from asyncgen.dashboard.notebook import notebook_bars  # noqa: PLC0415  # only where there is one

            return notebook_bars()
    return choose_view()


def plain_lines(out: TextIO, every: float = LINE_SECONDS) -> View:
    """One line of figures every ``every`` seconds."""

    async def watch(flow: Watched) -> None:
        recent = Recent()
        patient = Patient.before(out)
        while True:
            await anyio.sleep(every)
            if patient is not None and patient.held:  # what is read later would be out of date
                continue
            snapshot = flow.snapshot()
            line = one_line(snapshot, recent.figures(snapshot))
            print(printable(line, out.encoding), file=patient or out, flush=True)
            if patient is not None:
                patient.send()

    return watch


def tell(text: str, out: TextIO | None = None) -> None:
    """Prints a text for a person, on standard error unless told; bars that are up are not torn by it. A terminal that
    is gone hears nothing, which must not end a run; one that is held, or a pipe that nobody reads, keeps no event loop.
    """
    stream = sys.stderr if out is None else out
    if stream is None:
        return
    with suppress(OSError, ValueError):
        write = tqdm.write if getattr(tqdm, "_instances", None) else print
        patient = Patient.before(stream)
        if patient is None:
            write(text, file=stream)
            stream.flush()
            return
        held = patient.held
        if not patient.full:
            write(text, file=patient)
        patient.send()
        if not held and not _on_a_loop():
            patient.wait(HELD_SECONDS)


def _on_a_loop() -> bool:
    """Whether others wait while this thread does."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _nothing(_: Watched) -> None:
    """A view for nobody."""


def _outlived(view: View) -> View:
    """The same view; when its terminal goes away it ends, and the run goes on."""

    async def watch(flow: Watched) -> None:
        with suppress(OSError, ValueError):  # a ValueError is what a closed file raises
            await view(flow)

    return watch


def _takes_bars(out: TextIO) -> bool:
    if os.environ.get("TERM") == "dumb" or os.environ.get("CI", "").lower() not in ("", "0", "false"):
        return False
    if os.environ.get("TQDM_DISABLE"):  # tqdm would make bars that are none
        return False
    return out.isatty() and os.get_terminal_size(out.fileno()).columns >= LEAST_COLUMNS


def _in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel: its shell has one, the one in a terminal has not."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None
