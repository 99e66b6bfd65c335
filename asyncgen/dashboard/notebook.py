"""Bars in a notebook. Importing this needs ipywidgets."""

from __future__ import annotations

from html import escape

import anyio
from IPython.display import display
from ipywidgets import HTML
from tqdm.notebook import tqdm_notebook

from asyncgen.dashboard.figures import Figure, time_left
from asyncgen.dashboard.recent import Recent
from asyncgen.metrics import View, Watched

__all__ = ["notebook_bars"]

REFRESH_SECONDS = 0.5


def notebook_bars() -> View:
    """A bar of accepted stories and a table of figures below it, in the output of the cell; both stay there."""

    async def watch(flow: Watched) -> None:
        first = flow.snapshot()
        recent = Recent()
        bar = tqdm_notebook(total=first.goal, initial=first.accepted, unit=" stories", dynamic_ncols=True)
        table = HTML()
        display(table)  # type: ignore[no-untyped-call]  # IPython is typed in parts

        def draw() -> None:
            snapshot = flow.snapshot()
            bar.n = snapshot.accepted
            bar.set_postfix_str(time_left(snapshot), refresh=False)
            bar.refresh()
            table.value = _table(recent.figures(snapshot))

        try:
            while True:
                draw()
                await anyio.sleep(REFRESH_SECONDS)
        finally:
            draw()
            bar.close()

    return watch


def _table(shown: list[Figure]) -> str:
    rows = (f"<tr><td>{figure.label}</td><td>{escape(', '.join(figure.items))}</td></tr>" for figure in shown)
    return f"<table>{''.join(rows)}</table>"
